from pathlib import Path

import pytest

from stabkit.config import (
    ConfigError,
    OptimConfig,
    RunConfig,
    differences,
    load_config,
    preset_names,
    read_config,
    run_id,
    save_config,
    validate,
)
from stabkit.config.schedule import lr_at
from stabkit.yamlio import parse_yaml
from tests.conftest import small_config


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("5E3", 5e3), ("+1e-4", 1e-4), ("-2e-8", -2e-8), ("1.5e-4", 1.5e-4)],
)
def test_yaml_floats_without_a_dot_are_numbers(text: str, value: float) -> None:
    assert parse_yaml(f"lr: {text}") == {"lr": value}
    assert parse_yaml(f"[{text}]") == [value]


def test_one_override_need_not_be_in_a_list() -> None:
    assert load_config("tiny", "train.steps=50") == load_config("tiny", ["train.steps=50"])


@pytest.mark.parametrize("text", ["e4", "1e", "v1e4", "'1e-4'", "1e-4x"])
def test_yaml_text_that_only_looks_like_a_float_stays_text(text: str) -> None:
    assert isinstance(parse_yaml(f"name: {text}")["name"], str)


def test_yaml_refuses_a_key_written_twice() -> None:
    with pytest.raises(ValueError, match=r"duplicate key 'lr'.*line 2"):
        parse_yaml("lr: 1\nlr: 2")


def test_yaml_never_builds_objects() -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    assert isinstance(load_config(name), RunConfig)
    for method, temperature in (("moco", 0.2), ("simclr", 0.1), ("swav", 0.1)):
        assert load_config(name, [f"method.name={method}"]).method.temperature == temperature


def test_eps_of_lamb_is_its_own_unless_given() -> None:
    assert load_config("tiny", ["optim.name=lamb"]).optim.eps == 1e-6
    assert load_config("tiny", ["optim.name=lamb", "optim.eps=1e-8"]).optim.eps == 1e-8


def test_all_problems_are_reported_together_with_a_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", ["optim.lrr=1", "train.steps=many", "knn.temperature=-1"])
    message = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "optim.lrr: no such setting; did you mean 'optim.lr'?" in message
    assert "train.steps = 'many': should be" in message
    assert "knn.temperature = -1: should be greater than 0" in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("eval.every", "eval.every: no such setting; did you mean 'knn.every'"),
        ("zzz.qqq", "zzz.qqq: no such setting; `stabkit config tiny` prints all"),
    ],
)
def test_a_key_of_a_wrong_section_is_answered_with_the_settings_of_its_name(
    key: str, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("tiny", [f"{key}=4"])
    assert said in str(error.value)
    assert len(str(error.value)) < 160, "not a list of all settings"


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size 32 is not a multiple of .*patch_size 5"):
        load_config("tiny", ["model.patch_size=5"])
    with pytest.raises(ConfigError, match="parquet data needs path"):
        load_config("tiny", ["data.name=parquet"])
    clipped = ["optim.clip=patch_embed", "optim.clip_at=1.5"]
    with pytest.raises(ConfigError, match="clip patch_embed: resnet18 has no patch projection"):
        load_config("tiny", ["model={name: resnet18, stem: cifar}", *clipped])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train.steps=20"], "optim.warmup_steps 30 exceeds train.steps 20"),
        (["optim.warmup_steps=501"], "optim.warmup_steps 501 exceeds train.steps 500"),
        (
            ["method.name=swav", "train.steps=100"],
            "method.freeze_prototypes_steps 313 exceeds train.steps 100",
        ),
        (["knn.k=501"], "knn.k 501 exceeds knn.bank 500"),
        (
            ["data.name=cifar10", "data.path=.", "data.num_train=32"],
            "train.batch 64 exceeds data.num_train 32",
        ),
        (["data.path=/somewhere"], "data.path '/somewhere' does nothing for synthetic data"),
        (["data.download=true"], "data.download does nothing for synthetic data"),
        (
            ["data.name=imagefolder", "data.path=.", "data.download=true"],
            "data.download does nothing for imagefolder data: only for cifar10",
        ),
        (["runtime.signals_every=7"], "signals_every 7 does nothing without runtime.signals"),
    ],
)
def test_a_request_without_effect_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", words)
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


def test_settings_at_the_edge_have_an_effect() -> None:
    load_config("tiny", ["optim.warmup_steps=500", "knn.k=500"])
    load_config("tiny", ["train.steps=1"])  # an untrained model, to compare with
    load_config("tiny", ["method.name=swav", "method.freeze_prototypes_steps=500"])
    load_config("tiny", ["runtime.signals=[attention]", "runtime.signals_every=7"])
    load_config("tiny", ["method.freeze_prototypes_steps=501"])  # sizes may stand idle


def test_a_run_made_before_a_rule_is_read_all_the_same(tmp_path) -> None:
    old = small_config("train.steps=3", "optim.warmup_steps=9")
    path = tmp_path / "config.yaml"
    path.write_text(save_config(old), encoding="utf-8")
    assert read_config(path) == old
    with pytest.raises(ConfigError, match="warmup_steps 9 exceeds"):
        load_config(str(path))


def test_a_file_as_it_was_saved_is_not_parsed(tmp_path: Path, monkeypatch) -> None:
    config = small_config("optim.lr=1e-3", "data.path='a: b ü'")
    path = tmp_path / "config.yaml"
    path.write_text(
        save_config(small_config("optim.lr=1e-3", "data.path='a: b ü'", "runtime.threads=7"))
    )
    monkeypatch.setattr("stabkit.config.same.read_config", None)
    assert differences(path, config) == []


@pytest.mark.lengthy
def test_a_file_with_any_other_line_is_compared_by_its_settings(tmp_path: Path) -> None:
    """Change each line in turn: the answer is that of a comparison of all settings."""
    config, path = small_config("seed=7"), tmp_path / "config.yaml"
    lines = save_config(config).splitlines()
    for i, line in enumerate(lines):
        for changed in ([line + "9"], [line, line], [], ["# a note", line], [line + "  # so"]):
            path.write_text("\n".join([*lines[:i], *changed, *lines[i + 1 :]]) + "\n")
            try:
                same = run_id(read_config(path)) == run_id(config)
            except ConfigError:
                with pytest.raises(ConfigError):
                    differences(path, config)
            else:
                assert (differences(path, config) == []) == same, (line, changed)


def test_differences_of_two_runs_are_named_with_both_values(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(save_config(small_config()), encoding="utf-8")
    assert differences(path, small_config("runtime.threads=7")) == []
    other = small_config("seed=4", "optim.lr=0.5", "runtime.threads=7")
    assert differences(path, other) == [
        "seed: 0 there, 4 asked",
        "optim.lr: 0.004 there, 0.5 asked",
    ]
    path.write_text(
        "seed: 0\ndata: {num_train: 99, num_heldout: 9}\nmodel: {name: resnet18, stem: cifar}"
    )
    assert "data.num_train: 99 there, 64 asked" in differences(path, small_config())


def test_an_unknown_preset_and_a_bad_override_are_named() -> None:
    with pytest.raises(ConfigError, match="no such preset; did you mean 'tiny'"):
        load_config("tinny")
    with pytest.raises(ConfigError, match=r"'optim\.lr' is not of the form key=value"):
        load_config("tiny", ["optim.lr"])


def test_saved_configuration_reads_back_equal(tmp_path, config: RunConfig) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_run_id_follows_every_decisive_setting_and_nothing_else() -> None:
    base = run_id(small_config())
    decisive = [
        "seed=1",
        "optim.lr=2e-2",
        "data.image_size=32",
        "knn.every=6",
        "views.min_scale=0.2",
    ]
    assert len({base, *(run_id(small_config(change)) for change in decisive)}) == len(decisive) + 1
    harmless = ("threads=2", "device=cpu", "checkpoint_every=9", "runs_per_gpu=4")
    for change in (f"runtime.{setting}" for setting in harmless):
        assert run_id(small_config(change)) == base
    assert run_id(small_config("optim.beta2=0.999")) == base, (
        "a default written out is the same run"
    )


def test_released_defaults_never_change() -> None:
    """A run's id leaves defaults out, so a changed default would give old ids a new meaning."""
    minimal = {
        "data": {"num_train": 64, "num_heldout": 10},
        "model": {"patch_size": 8, "width": 64, "depth": 1, "heads": 1},
    }
    config = validate(RunConfig, minimal, "test")
    assert config.model_dump(exclude={"runtime"}) == {
        "seed": 0,
        "data": {
            "name": "synthetic",
            "path": None,
            "image_size": 32,
            "num_train": 64,
            "num_heldout": 10,
            "download": False,
        },
        "views": {"min_scale": 0.08, "blur_sigma": (0.1, 2.0)},
        "model": {
            "name": "vit",
            "patch_size": 8,
            "width": 64,
            "depth": 1,
            "heads": 1,
            "freeze_patch_embed": False,
            "stem": "patch",
            "patch_norm": "none",
            "positions": "sincos",
            "pool": "token",
            "mlp_norm": "layer",
            "qk_norm": False,
        },
        "method": {
            "name": "moco",
            "hidden": 4096,
            "out": 256,
            "projector_layers": 3,
            "head_norm": None,
            "predictor": True,
            "predictor_norm": None,
            "temperature": 0.2,
            "scale_loss": True,
            "momentum": 0.99,
            "momentum_schedule": "cosine",
            "queue": 0,
            "prototypes": 3000,
            "sinkhorn": True,
            "sinkhorn_eps": 0.05,
            "freeze_prototypes_steps": 313,
        },
        "optim": {
            "name": "adamw",
            "lr": 1.5e-4,
            "lr_rule": "linear",
            "weight_decay": 0.1,
            "decay_all": True,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "momentum": 0.9,
            "trust": 1e-3,
            "warmup_steps": 0,
            "schedule": "cosine",
            "clip": "none",
            "clip_at": None,
            "skip_nonfinite": False,
        },
        "train": {"batch": 64, "steps": 700},
        "compute": {
            "precision": "fp32",
            "compile": False,
            "channels_last": False,
            "fused_optimizer": False,
        },
        "fault": {"until": 0, "scale": 1e-3, "first": None, "lead": 0},
        "branch": None,
        "knn": {
            "every": 10,
            "k": 200,
            "temperature": 0.07,
            "queries": 1000,
            "bank": 1000,
            "fifo": 0.1,
        },
    }


PAPER = ["train.batch=4096", "train.steps=31200", "optim.lr=1e-4"]  # 100 epochs of ImageNet-1k


def test_shares_of_the_run_give_the_numbers_of_the_paper() -> None:
    shares = ["optim.warmup_share=0.4", f"optim.beta2_share={1000 / 31200}"]
    shares += [f"method.momentum_share={100 / 31200}", "optim.decay_total=2.496"]
    config = load_config("imagenet", [*PAPER, *shares])
    assert config.optim.warmup_steps == 12480
    assert (config.optim.beta2, config.method.momentum) == (0.999, 0.99)
    # Half of the peak on average over warm-up and cosine: 31,200 * (1e-4 * 16) / 2 * 0.1.
    assert config.optim.weight_decay == pytest.approx(0.1, rel=1e-4)


def test_a_share_and_its_number_are_one_run(tmp_path) -> None:
    by_share = load_config("tiny", ["optim.warmup_share=0.4", "method.momentum_share=0.02"])
    by_number = load_config("tiny", ["optim.warmup_steps=200", "method.momentum=0.9"])
    assert run_id(by_share) == run_id(by_number)
    path = tmp_path / "config.yaml"
    path.write_text(save_config(by_share))
    assert "share" not in path.read_text()
    assert read_config(path) == by_number
    # A number on top of a share replaces it, as one number replaces another.
    (tmp_path / "mine.yaml").write_text("optim: {warmup_share: 0.4}\n" + MINE)
    over = load_config(str(tmp_path / "mine.yaml"), ["optim.warmup_steps=7"])
    assert over.optim.warmup_steps == 7


MINE = """
data: {name: synthetic, num_train: 100, num_heldout: 100}
model: {patch_size: 8, width: 16, depth: 1, heads: 2}
train: {batch: 50, steps: 100}
knn: {k: 10, bank: 50, queries: 50}
"""


def test_shares_hold_for_sections_built_in_python() -> None:
    content = parse_yaml(MINE) | {"optim": OptimConfig(warmup_share=0.25, beta2_share=0.1)}
    config = RunConfig(**content)
    assert (config.optim.warmup_steps, config.optim.beta2) == (25, 0.9)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.warmup_share=0.4", "optim.warmup_steps=30"], "warmup_steps 30: give one of them"),
        (["optim.warmup_share=1.5"], "optim.warmup_share = 1.5: should be less than or equal to 1"),
        (["optim.beta2_share=0.002"], "memory of 1: should be more than one step, so above 0.002"),
        (["optim.decay_total=x"], "optim.decay_total = 'x': should be number"),
        (["optim.name=sgd", "optim.beta2_share=0.1"], "beta2_share 0.1 has no meaning for sgd"),
        (["method.name=simclr", "method.momentum_share=.1"], "momentum_share 0.1 does nothing for"),
        (["optim.decay_total=1", "train.steps=1", "optim.warmup_steps=1"], "learning rate is 0 at"),
        (["optim.beta2_share=0.1", "train.steps=0"], "train.steps = 0: should be greater than 0"),
    ],
)
def test_a_share_that_gives_no_number_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("tiny", words)
    assert problem in str(error.value)


def test_the_rate_stays_constant_after_the_warm_up_where_asked() -> None:
    config = load_config("tiny", ["optim.schedule=constant", "optim.lr_rule=none"])
    rates = [lr_at(step, 500, config.optim, 64) for step in range(500)]
    assert rates[:31] == pytest.approx([0.004 * step / 30 for step in range(31)])
    assert set(rates[30:]) == {0.004}
    # The decay is spread over another sum of rates, so that its total stays the same.
    total = [load_config("tiny", ["optim.decay_total=2", f"optim.schedule={name}"]).optim
             for name in ("constant", "cosine")]  # fmt: skip
    for optim in total:
        sums = sum(lr_at(step, 500, optim, 64) for step in range(500)) * optim.weight_decay
        assert sums == pytest.approx(2, rel=1e-5)
