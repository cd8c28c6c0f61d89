"""What the report advises: settings for our own runs, lines of torch for any other loop."""

import itertools
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stabkit.analyze.cells import Cell, group_cells
from stabkit.analyze.claims import mean_above_zero
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.report import remedy_trials
from stabkit.analyze.report.advice import advise
from stabkit.analyze.report.contents import Report, make_report
from stabkit.analyze.report.page import render
from stabkit.analyze.report.remedies import NO_HELP, REMEDIES
from stabkit.analyze.report.remedy import Remedy
from stabkit.analyze.report.remedy_trials import Trial, trial, trials
from stabkit.analyze.report.sources import SOURCES
from stabkit.analyze.report.torch_lines import torch_lines, values_of
from stabkit.analyze.summary import run_table
from stabkit.config import RunConfig, keys_of, load_config
from stabkit.detect.significance import holm
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from tests.analyze.conftest import (
    STEPS,
    blow_up,
    diagnosed,
    diagnosed_run,
    evaluate_again,
    level,
    plant_loop,
    plant_run,
)

BY_NAME = {remedy.name: remedy for remedy in REMEDIES}
LEARNED = ("false", "true")  # how the runs of `grid` are called
FREEZE, LOWER = BY_NAME["Freeze the patch projection"], BY_NAME["Lower the learning rate"]
GPT = ["wte", "wpe", "h.0", "h.1", "h.2", "h.3", "ln_f"]
VIT = ["patch_embed", "blocks.0", "blocks.1", "norm"]


def reported(folder: Path) -> tuple[Report, str]:
    report = make_report(diagnosed(folder))
    page = render(report)
    return report, page[page.index('id="try"') :]


@pytest.mark.lengthy
@pytest.mark.usefixtures("undrawn")
def test_a_language_model_is_advised_in_torch_and_not_as_a_vision_transformer(
    tmp_path: Path,
) -> None:
    plant_loop(tmp_path / "a", GPT, burst="h.2", warmup=50, lr=6e-4, beta2=0.99)
    report, said = reported(tmp_path)
    assert "It began in h.2 at step 300, with a gradient burst." in said
    assert "lr=0.0003  # where the optimizer is made; half of the largest on record, 0.0006" in said
    assert "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)" in said
    assert "betas=(0.9, 0.95)  # where the optimizer is made; β2 was 0.99" in said
    assert "QK-norm" in said
    for word in ("patch", "MoCo", "stem", "optim.lr=", "model.qk_norm", "no settings on record"):
        assert word not in said, word
    assert all(advice.score > 0 for advice in report.advice)


@pytest.mark.lengthy
@pytest.mark.usefixtures("undrawn")
def test_the_patch_projection_of_another_loop_is_called_by_its_name(tmp_path: Path) -> None:
    plant_loop(tmp_path / "a", VIT, burst="patch_embed", lr=1e-3)
    report, said = reported(tmp_path)
    assert report.signs["patch_first"] == 1
    assert FREEZE in [advice.remedy for advice in report.advice]
    assert "model.patch_embed.requires_grad_(False)" in said
    assert "It began in patch_embed at step 300" in said


@pytest.mark.usefixtures("undrawn")
def test_nothing_is_advised_where_nothing_was_seen(tmp_path: Path) -> None:
    plant_loop(tmp_path / "a", GPT, lr=6e-4)
    report, said = reported(tmp_path)
    assert report.advice == ()
    assert "Nothing was seen that asks for a remedy." in said
    assert "<article>" not in said
    assert "<details>" not in said


def test_what_a_model_does_not_have_is_not_treated(tmp_path: Path) -> None:
    """Layers tell of attention, heads and patches; signals tell of Adam."""
    plant_loop(tmp_path / "gpt", GPT)
    plant_loop(tmp_path / "resnet", ["conv1", "layer1.0", "layer2.0", "fc"])
    plant_loop(tmp_path / "simclr", [*VIT, "projector"])
    plant_loop(tmp_path / "log")
    signs = dict.fromkeys(
        ("dips", "bursts", "patch_first", "collapsed", "nonfinite", "loss_spikes"), 1
    )
    every = {
        name: {a.remedy.name for a in advise(runs, run_table(runs), signs, name)}
        for name in ("gpt", "resnet", "simclr", "log")
        for runs in (diagnosed(tmp_path / name),)
    }
    patch = {remedy.name for remedy in REMEDIES if "patch_embed" in remedy.needs}
    assert len(patch) == 3
    assert all(patch.isdisjoint(every[name]) for name in ("gpt", "resnet", "log"))
    assert patch < every["simclr"]
    assert ("QK-norm" in every["gpt"], "QK-norm" in every["simclr"]) == (True, True)
    assert ("QK-norm" in every["resnet"], "QK-norm" in every["log"]) == (False, False)
    assert [name for name in every if "BN in the heads" in every[name]] == ["simclr"]
    assert all("Lower β2" in found for found in every.values())


def test_a_monitored_optimizer_without_moments_gets_no_betas(tmp_path: Path) -> None:
    writer, steps = Writer(tmp_path / "a", "loop"), np.arange(STEPS)
    ones = np.ones((STEPS, 1), dtype=np.float32)
    signals = (*SIGNALS, "update_norm")
    missing = dict.fromkeys(signals, np.zeros((STEPS, 1), dtype=bool))
    writer.add_layers(steps, ["fc"], dict.fromkeys(signals, ones), missing)
    writer.add_scalars(steps, "nonfinite_layers", np.zeros(STEPS))
    writer.flush()
    runs = diagnosed(tmp_path)
    found = [a.remedy.name for a in advise(runs, run_table(runs), {"bursts": 1}, "a")]
    assert found[0] == "Lower the learning rate"
    assert {"Lower β2", "StableAdamW"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("lr", 0.1),
        ("lr.1", 0.1),
        ("train/learning_rate", 0.1),
        ("lr-AdamW", 0.1),
        ("x/lr0", 0.1),
        ("train_lr", 0.1),
        ("LearningRate", 0.1),
        ("clr_loss", None),
        ("slrate", None),
    ],
)
def test_a_learning_rate_is_known_by_its_name(
    tmp_path: Path, name: str, rate: float | None
) -> None:
    plant_loop(tmp_path / "a", **{name: 0.1})
    values = values_of(diagnosed_run(tmp_path / "a"), None)
    assert values["lr"] == ("lr / 2" if rate is None else "0.05")


@pytest.mark.parametrize(("warmup", "advised"), [(40, "80"), (0, "50")])
def test_a_longer_warm_up_is_twice_what_was_recorded(
    tmp_path: Path, warmup: int, advised: str
) -> None:
    plant_loop(tmp_path / "a", warmup=warmup, lr=1e-3)
    assert values_of(diagnosed_run(tmp_path / "a"), None)["warmup"] == advised


def test_a_threshold_to_clip_at_comes_from_the_norms_on_record(tmp_path: Path) -> None:
    norms = np.linspace(0, 2, STEPS)
    plant_loop(tmp_path / "one", grad_norm=norms)
    plant_loop(tmp_path / "parts", head_grad_norm=norms, body_grad_norm=norms)
    notes = [values_of(diagnosed_run(tmp_path / n), None)["clip_note"] for n in ("one", "parts")]
    assert notes == ["\n# 90% of the norms on record are below 1.8", ""]


@pytest.mark.parametrize(("now", "lower"), [(0.999, "0.95"), (0.98, "0.95"), (0.95, "0.9")])
def test_a_lower_beta2_is_lower(tmp_path: Path, now: float, lower: str) -> None:
    plant_loop(tmp_path / "a", beta2=now)
    assert values_of(diagnosed_run(tmp_path / "a"), None)["beta2"] == lower


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.name)
def test_the_lines_of_torch_run(tmp_path: Path, remedy: Remedy) -> None:
    """Each remedy in a loop of one step: statements as they stand, arguments in a call."""
    plant_loop(tmp_path / "a", VIT, lr=1e-3, grad_norm_total=2.0)
    lines = torch_lines(remedy, values_of(diagnosed_run(tmp_path / "a"), 300))
    assert "{" not in lines
    model = nn.Module()
    model.patch_embed = nn.Module()
    model.patch_embed.proj = nn.Conv2d(3, 8, 16, stride=16)
    out = model.patch_embed.proj(torch.ones(2, 3, 32, 32)).mean()
    out.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    file = tmp_path / "state.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    known = {
        "torch": torch, "math": math, "itertools": itertools, "model": model,
        "optimizer": optimizer, "loader": range(1000), "seen": 10, "file": file,
        "self": nn.Module(),
        "head_dim": 4, "q": torch.ones(2, 4), "k": torch.ones(2, 4), "dim": 16, "width": 8,
        "mean": 1.0, "std": 0.1, "lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1,
        "batch_size": 64, "warmup_steps": 10,
    }  # fmt: skip
    if re.match(r"\w+=", lines):  # arguments
        code = ", ".join(line.split("  #")[0] for line in lines.splitlines())
        assert eval(f"dict({code})", known)
    else:
        exec(lines, known)
    if remedy.name == "Convolutional stem":
        assert model.patch_embed.proj(torch.ones(2, 3, 32, 32)).shape == (2, 16, 2, 2)


def test_every_remedy_is_whole_and_can_be_tried(tmp_path: Path) -> None:
    """For and against, from sources that exist, with settings that a run takes."""
    known = keys_of(RunConfig)
    cited = {NO_HELP.source}
    for remedy in REMEDIES:
        assert remedy.supports, remedy.name
        assert remedy.opposes, remedy.name
        cited |= {item.source for item in (*remedy.supports, *remedy.opposes)}
        assert set(remedy.settings) <= set(known)
        assert remedy.torch
        assert remedy.answers
    assert cited - {""} == set(SOURCES)
    plant_run(tmp_path / "a", "method.head_norm=none", dip=0.08)
    runs = diagnosed(tmp_path)
    found = advise(runs, run_table(runs), {"dips": 1}, "a")
    assert {advice.remedy.name for advice in found} == {r.name for r in REMEDIES if r.settings}
    for advice in found:
        assert advice.command, f"{advice.remedy.name}: {advice.why_not}"
        program, verb, config, *settings = shlex.split(advice.command)
        assert (program, verb) == ("stabkit", "train")
        changed, before = load_config(config, settings), load_config(config)
        assert changed != before


def test_a_remedy_that_the_run_cannot_take_says_why(tmp_path: Path) -> None:
    plant_run(tmp_path / "a", "model.freeze_patch_embed=true", dip=0.08)
    runs = diagnosed(tmp_path)
    found = {a.remedy.name: a for a in advise(runs, run_table(runs), {"dips": 1}, "a")}
    frozen = found[FREEZE.name]
    assert (frozen.command, frozen.in_use) == (None, 1)
    assert FREEZE.name in list(found)[-2:], "what all runs have already comes last"
    clipped = found["Clip the patch projection at a small threshold"]
    assert clipped.command is None
    heads = found["BN in the heads"]  # of MoCo v3, where nothing else is set
    assert (heads.command, heads.in_use) == (None, 1)
    assert "nothing to clip" in clipped.why_not


def test_what_the_runs_measure_is_their_paired_difference(grid_runs: Diagnoses) -> None:
    runs = grid_runs
    table = run_table(runs)
    bad = set(table.loc[table["verdict"] == "unstable", "run"])
    levels = {run.name: level(run) for run in runs}
    for remedy, pairs in (
        (FREEZE, [(f"lr {x} false {s}", f"lr {x} true {s}") for x in (0.001, 0.02) for s in "01"]),
        (LOWER, [(f"lr 0.02 {x} {s}", f"lr 0.001 {x} {s}") for x in LEARNED for s in "01"]),
    ):
        found = trial(remedy, group_cells(runs), bad)
        assert found is not None
        assert len(found.pairs) == len(pairs)
        gains = [levels[after] - levels[before] for before, after in pairs]
        assert found.claim.effect == pytest.approx(np.mean(gains), abs=1e-9)
        assert sum(pair.unstable_without for pair in found.pairs) == 2
        assert sum(pair.unstable_with for pair in found.pairs) == 0
        assert "n = 4 pairs" in found.words()
        assert "Not decisive" in found.words()
    assert trial(BY_NAME["QK-norm"], group_cells(runs), bad) is None


def test_runs_that_record_no_seed_are_paired_in_their_order() -> None:
    def run(lr: float, level: float) -> Any:
        settings = {"optim.lr": lr}
        accuracy = SimpleNamespace(level=level)
        names = {"name": f"{lr} {level}", "accuracy": accuracy, "settings": settings}
        return SimpleNamespace(finished=True, blew_up=False, **names)

    cells = [
        Cell({"optim.lr": lr}, tuple(run(lr, base + i / 10) for i in range(3)))
        for lr, base in ((0.1, 0.3), (0.01, 0.5))
    ]
    found = trial(LOWER, cells, set())
    assert found is not None
    assert [round(pair.level_with - pair.level_without) for pair in found.pairs] == [20, 20, 20]


def plant_frozen_ends_higher(folder: Path, seeds: int) -> None:
    for seed in range(seeds):
        for freeze, start in (("false", 0.25), ("true", 0.30)):
            run = folder / f"{freeze} {seed}"
            plant_run(run, f"model.freeze_patch_embed={freeze}", seed=seed)
            evaluate_again(run, start, seed)


@pytest.mark.lengthy
def test_one_pair_is_never_decisive_and_three_alike_are(tmp_path: Path) -> None:
    plant_frozen_ends_higher(tmp_path, seeds=3)
    runs = diagnosed(tmp_path)
    (found,) = trials([FREEZE], group_cells(runs), set())
    assert found is not None
    assert "Decisive: it ends higher here." in found.words()
    assert "too few runs for an interval" in found.words()
    assert found.claim.effect == pytest.approx(5, abs=0.5)  # a jitter of 0.1 in each of six levels
    first = advise(runs, run_table(runs), {"dips": 1}, runs.items[0].name)[0]
    assert first.remedy is FREEZE, "what the runs decide for comes first"
    two = Diagnoses(tmp_path, tuple(r for r in runs if r.settings["seed"] < 2))
    for some, number in ((two, "n = 2 pairs"), (replace(two, items=runs.items[::3]), "n = 1 pair")):
        (alone,) = trials([FREEZE], group_cells(some), set())
        assert alone is not None
        assert number in alone.words()
        assert "Not decisive: a test takes 3 pairs" in alone.words()
    RunDir(tmp_path / "true 2").write_status(Status("failed", 100, 500))
    (ended,) = trials([FREEZE], group_cells(diagnosed(tmp_path)), set())
    assert ended is not None
    assert "n = 2 pairs" in ended.words(), "a run that has not ended has no final accuracy"
    assert "Left out: 1 unfinished run." in ended.words()
    assert "Left out" not in found.words()


def test_a_rate_is_advised_with_which_runs_like_it_were_stable(tmp_path: Path) -> None:
    """Half of it was not tried, and a rate below that dipped."""
    for lr, dip in (("0.004", 0.0), ("0.016", 0.2), ("0.04", 0.2)):
        plant_run(tmp_path / lr, f"optim.lr={lr}", dip=dip)
    plant_run(tmp_path / "frozen", "optim.lr=0.02", "model.freeze_patch_embed=true")
    runs = diagnosed(tmp_path)

    def lines(worst: str) -> str:
        found = advise(runs, run_table(runs), {"dips": 2}, worst)
        return next(one.lines for one in found if one.remedy is LOWER)

    assert lines("0.04") == lines("0.016") == "optim.lr=0.004"
    shutil.rmtree(tmp_path / "0.004")
    runs = diagnosed(tmp_path)
    assert lines("0.04") == "optim.lr=0.02"


@pytest.mark.lengthy
def test_a_remedy_is_not_praised_for_the_runs_that_survived_it(tmp_path: Path) -> None:
    """Without the run that blew up, the others end higher."""
    plant_frozen_ends_higher(tmp_path, seeds=4)
    blow_up(tmp_path / "true 3")
    runs = diagnosed(tmp_path)
    (found,) = trials([FREEZE], group_cells(runs), {"true 3"})
    assert found is not None
    assert found.verdict == "undecided"
    assert "Unstable were 0 of 4 runs without and 1 of 4 with it." in found.words()
    assert "Not decisive: 1 unstable run broke off and has no final accuracy." in found.words()


def test_many_remedies_are_corrected_for_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {
        FREEZE.name: [2.0, 2.1, 1.9, 2.0],
        LOWER.name: [1.0, 2.0, 4.5, 3.0],
        "StableAdamW": [-1.0, 1.0, 2.0, 0.5],
        "QK-norm": [5.0, 5.1, 5.2],
    }

    def measured(remedy: Remedy, *_: object) -> Trial | None:
        found = gains.get(remedy.name)
        return Trial((), mean_above_zero(remedy.name, found, "points"), 0) if found else None

    monkeypatch.setattr(remedy_trials, "trial", measured)
    found = {r.name: t for r, t in zip(REMEDIES, trials(REMEDIES, [], set()), strict=True) if t}
    tested = [trial for name, trial in found.items() if name != "QK-norm"]
    expected = holm([trial.claim.p_value for trial in tested])
    assert [trial.corrected for trial in tested] == pytest.approx(expected)
    assert found[FREEZE.name].verdict == "holds"
    lower = found[LOWER.name]
    assert lower.claim.verdict == "holds"
    assert lower.corrected == pytest.approx(2 * lower.claim.p_value)
    assert lower.verdict == "undecided"
    assert "Not decisive: it may be chance" in lower.words()
    assert math.isnan(found["QK-norm"].corrected)
