import itertools
from pathlib import Path

import pytest

from stabkit.config import ConfigError
from stabkit.sweep.grid import load_sweep

SWEEP = """
name: demo
base: tiny
set: {train.steps: 50}
grid: {optim.lr: [1e-3, 2e-3], model.freeze_patch_embed: [false, true]}
zip: {train.batch: [16, 32], optim.warmup_steps: [4, 2]}
seeds: [0, 1]
exclude: [{optim.lr: 2e-3, model.freeze_patch_embed: true}]
scales:
  tiny: {}
  long: {set: {train.steps: 100}, seeds: [7]}
"""


def write(folder: Path, text: str = SWEEP) -> Path:
    path = folder / "sweep's file ü.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_expansion_is_the_ordered_product_without_the_excluded(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path))
    expected = [
        (lr, freeze, batch, warmup, seed)
        for lr, freeze, (batch, warmup), seed in itertools.product(
            [1e-3, 2e-3], [False, True], [(16, 4), (32, 2)], [0, 1]
        )
        if not (lr == 2e-3 and freeze)
    ]
    found = [
        (
            c.config.optim.lr,
            c.config.model.freeze_patch_embed,
            c.config.train.batch,
            c.config.optim.warmup_steps,
            c.config.seed,
        )
        for c in sweep.runs
    ]
    assert found == expected
    assert all(c.config.train.steps == 50 for c in sweep.runs)
    assert len({c.folder for c in sweep.runs}) == len(expected)
    assert (sweep.name, sweep.scale) == ("demo", "tiny")


def test_a_scale_replaces_whole_keys_and_has_its_own_folder(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path), "long")
    assert (sweep.name, sweep.scale) == ("demo-long", "long")
    assert {c.config.train.steps for c in sweep.runs} == {100}
    assert {c.config.seed for c in sweep.runs} == {7}


def test_overrides_reach_every_cell_and_replace_a_varied_key(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path), None, ["optim.lr=5e-4", "seed=3", "knn.k=7"])
    assert {(c.config.optim.lr, c.config.seed, c.config.knn.k) for c in sweep.runs} == {
        (5e-4, 3, 7)
    }
    assert len(sweep.runs) == 4


def test_expanding_twice_gives_the_same_folders(tmp_path: Path) -> None:
    first, second = (load_sweep(write(tmp_path)) for _ in range(2))
    assert [c.folder for c in first.runs] == [c.folder for c in second.runs]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("set: {seed: 5}", "seed: a sweep has the list seeds"),
        ("grid: {optim.lrr: [1]}", "optim.lrr: no such setting; did you mean 'optim.lr'"),
        ("grids: {optim.lr: [1]}", "grids: no such setting; did you mean 'grid'"),
        ("seeds: [-1]", "seeds.0 = -1: should be a whole number from 0"),
        ("grid: {optim.lr: []}", "grid.optim.lr = []: "),
        ("grid: {optim.lr: 3}", "grid.optim.lr = 3: should be list"),
        ("name: ../escape", "name = '../escape'"),
        ("zip: {optim.lr: [1, 2], seed: [1]}", "lengths are {'optim.lr': 2, 'seed': 1}"),
        ("base: nope", "no such preset"),
        ("grid: {optim.lr: [many]}", "optim.lr = 'many': should be a number above 0"),
        ("exclude: [{optim.lr: 1e-3}]\ngrid: {optim.lr: [1e-3]}", "no run is left"),
        ("scales: [tiny]", "scales: should map"),
    ],
)
def test_bad_sweeps_are_refused_with_the_reason(tmp_path: Path, change: str, problem: str) -> None:
    keys = {line.split(":")[0] for line in change.splitlines()}
    rest = [line for line in ("name: demo", "base: tiny") if line.split(":")[0] not in keys]
    path = write(tmp_path, "\n".join([*rest, change]))
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value) or "nope" in str(caught.value)


def test_a_million_cells_are_refused_with_their_number(tmp_path: Path) -> None:
    values = list(range(1, 101))
    grid = f"grid: {{optim.lr: {values}, knn.k: {values}, train.steps: {values}}}"
    with pytest.raises(ConfigError, match="1,000,000 runs; a sweep has at most 10,000"):
        load_sweep(write(tmp_path, f"name: demo\nbase: tiny\n{grid}"))


def test_folder_names_stay_inside_and_readable(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: demo\nbase: tiny\nset: {data.name: imagefolder}\n"
        'grid: {data.path: ["../../etc", "a b/ü\\n"]}',
    )
    for run in load_sweep(path).runs:
        assert "/" not in run.folder
        assert run.folder.isascii()
        assert ".." not in Path(run.folder).parts


@pytest.mark.parametrize(
    ("varied", "first", "second"),
    [
        ("grid: {optim.lr: [1e-3, 0.001]}", "optim.lr=0.001, seed=0", "optim.lr=0.001, seed=0"),
        ("grid: {train.batch: [8, 8.0]}", "train.batch=8, seed=0", "train.batch=8.0, seed=0"),
        ("seeds: [3, 3]", "seed=3", "seed=3"),
        ("grid: {runtime.threads: [1, 2]}", "runtime.threads=1, seed=0", "runtime.threads=2"),
        ("grid: {runtime.device: [cpu, auto]}", "runtime.device=cpu", "runtime.device=auto"),
        ("grid: {slurm.nodes: [1, 2]}", "seed=0, slurm.nodes=1", "seed=0, slurm.nodes=2"),
        # a default written out, and one that is only there
        ("grid: {optim.beta2: [0.999], optim.momentum: [0.9, 0.90]}", "momentum=0.9", "0.9, seed"),
    ],
)
def test_two_cells_that_are_one_run_are_refused_and_named(
    tmp_path: Path, varied: str, first: str, second: str
) -> None:
    path = write(tmp_path, f"name: demo\nbase: tiny\n{varied}")
    with pytest.raises(ConfigError, match="two settings give the same run") as caught:
        load_sweep(path)
    one, other = str(caught.value).split("two settings give the same run", 1)[1].split(" and ")
    assert first in one
    assert second in other


def test_cells_that_are_one_run_are_told_in_twenty_lines(tmp_path: Path) -> None:
    path = write(tmp_path, f"name: demo\nbase: tiny\nseeds: {[5] * 100}")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 79 more"


def test_pairs_that_an_override_makes_equal_are_one_cell(tmp_path: Path) -> None:
    text = "name: demo\nbase: tiny\nzip: {optim.lr: [1e-3, 2e-3, 3e-3], train.batch: [8, 8, 16]}"
    path = write(tmp_path, text)
    assert len(load_sweep(path).runs) == 3
    runs = load_sweep(path, None, ["optim.lr=5e-3"]).runs
    assert [(c.config.optim.lr, c.config.train.batch) for c in runs] == [(5e-3, 8), (5e-3, 16)]


def test_every_problem_of_the_keys_is_told_at_once(tmp_path: Path) -> None:
    lines = [
        "name: demo", "base: tiny", "set: {train.batch: 8, optim.rl: 1}",
        "grid: {optim.lr: [1e-3, 2e-3], train.batch: [8, 16]}",
        "zip: {optim.lr: [1, 2], train.steps: [5]}",
        "exclude: [{model.depht: 3}]",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, "\n".join(lines)))
    for problem in (
        "lengths are {'optim.lr': 2, 'train.steps': 1}",
        "in both grid and zip: optim.lr",
        "optim.rl: no such setting; did you mean 'optim.lr'?",
        "model.depht: no such setting; did you mean 'model.depth'?",
        "in set and varied as well: train.batch",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{train.steps: 50}", "train.steps does not vary, only keys of grid and zip do"),
        ("{train.steps: 50, optim.lr: 1e-3}", "train.steps does not vary"),
        ("{optim.name: sgd}", "optim.name does not vary"),
        ("{optim.lr: 5e-3}", "exclude {'optim.lr': 0.005}: no run is like that"),
        ("{optim.lr: 2e-3, train.batch: 64}", "no run is like that"),
        ("{train.batch: 16, optim.warmup_steps: 2}", "no run is like that"),  # of two pairs
        ("{optim.lr: '2e-3'}", "no run is like that"),  # text
        ("{}", "a rule without a key would exclude every run"),
    ],
)
def test_a_rule_that_excludes_nothing_is_refused(tmp_path: Path, rule: str, problem: str) -> None:
    rules = "exclude: [{optim.lr: 2e-3, model.freeze_patch_embed: true}"
    path = write(tmp_path, SWEEP.replace(rules, f"{rules}, {rule}"))
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert problem in str(caught.value)


def test_rules_hold_for_what_an_override_says_as_well(tmp_path: Path) -> None:
    runs = load_sweep(write(tmp_path), None, ["optim.lr=2e-3"]).runs
    assert {c.config.model.freeze_patch_embed for c in runs} == {False}
    assert len(runs) == 4


def test_a_key_that_is_set_and_varied_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SWEEP.replace("{train.steps: 50}", "{optim.lr: 1e-3}"))
    with pytest.raises(ConfigError, match=r"in set and varied as well: optim\.lr"):
        load_sweep(path)


@pytest.mark.parametrize("scale", [None, "long"])
def test_settings_without_effect_are_refused_in_every_cell(
    tmp_path: Path, scale: str | None
) -> None:
    path = write(
        tmp_path, SWEEP.replace("optim.warmup_steps: [4, 2]", "optim.warmup_steps: [4, 101]")
    )
    with pytest.raises(ConfigError, match=r"warmup_steps 101 exceeds train\.steps (50|100)"):
        load_sweep(path, scale)


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_expands_at_every_scale(path: Path) -> None:
    from stabkit.yamlio import read_yaml

    for scale in read_yaml(path)["scales"]:
        assert load_sweep(path, scale).runs


PUBLISHED = SWEEP.replace(
    "  long:",
    "  paper:\n    published: {source: a table, measure: accuracy, values: [1, 2, 3, 4, 5, null]}\n"
    "    slurm: {nodes: 2, tasks_per_node: 4, gpus_per_node: 4, timeout_min: 60}\n  long:",
)


def test_published_values_belong_to_the_cells_whatever_their_seed(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, PUBLISHED), "paper")
    found = {}
    for run in sweep.runs:
        key = tuple(v for k, v in run.settings.items() if k != "seed")
        assert found.setdefault(key, run.published) == run.published
    assert list(found.values()) == [1, 2, 3, 4, 5, None]
    assert {(c.slurm["nodes"], c.slurm["timeout_min"]) for c in sweep.runs} == {(2, 60)}


def test_a_changed_axis_is_no_longer_what_was_published(tmp_path: Path) -> None:
    path = write(tmp_path, PUBLISHED)
    assert {c.published for c in load_sweep(path, "paper", ["optim.lr=1e-4"]).runs} == {None}
    assert {c.published for c in load_sweep(path, "paper", ["optim.name=sgd"]).runs} == {None}
    assert any(c.published for c in load_sweep(path, "paper", ["knn.k=3"]).runs)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("5, null]", "5]", "published.values holds 5 numbers for 6 cells; write null"),
        ("gpus_per_node: 4", "gpus_per_node: 2", "a task drives one GPU"),
        ("nodes: 2", "nods: 2", "slurm.nods: no such setting; did you mean 'slurm.nodes'"),
    ],
)
def test_wrong_requests_and_wrong_counts_are_refused(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, PUBLISHED.replace(old, new)), "paper")
    assert problem in str(caught.value)
