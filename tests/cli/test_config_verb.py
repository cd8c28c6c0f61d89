"""`stabkit config` prints every setting, and what it prints is the same run."""

from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.config import RunConfig, keys_of, load_config, preset_names, run_id, save_config
from stabkit.config.described import described
from stabkit.rundir import MONITOR_SETTINGS


@pytest.mark.parametrize("preset", preset_names())
def test_what_is_printed_is_the_same_run_with_every_setting(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method.name=simclr", "optim.warmup_share=0.4", "views.blur_sigma=[0.5, 1]"]
    for overrides in ([], words):
        assert main(["config", preset, *overrides]) == 0
        printed = capsys.readouterr().out
        file = tmp_path / "own.yaml"
        file.write_text(printed)
        config = load_config(preset, overrides)
        assert load_config(str(file)) == config
        assert run_id(load_config(str(file))) == run_id(config)
        keys = [line.split(":")[0].strip() for line in printed.splitlines() if "#" not in line[:4]]
        assert set(keys) - {""} == {part for key in keys_of(RunConfig) for part in key.split(".")}


def test_what_differs_from_the_defaults_is_marked_and_no_more() -> None:
    config = load_config("tiny", ["optim.beta2=0.95"])
    marked = {line.text.strip().split(":")[0]: line.comment for line in described(config)}
    assert marked["beta2"] == "default 0.999; a number from 0 below 1"
    assert marked["schedule"] == "cosine or constant"
    assert marked["qk_norm"] == "true or false"
    assert marked["clip_at"] == "a number above 0, or null"
    default = {line.text.strip() for line in described(config) if not line.differs}
    assert "beta1: 0.9" in default
    assert not any(text.startswith("beta2:") for text in default)


def test_a_sweep_shows_its_first_run_and_what_varies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "lr_grid"]) == main(["config", "sweeps/lr_grid.yaml"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("varied: 0.04, 0.07; default 0.00015") == 2
    assert printed.count("varied: false, true; true or false") == 2
    assert main(["config", "lr_grid", "--scale", "cifar", "data.path=x"]) == 0
    assert "varied: 0.00025, 0.0005, 0.001" in capsys.readouterr().out


def test_a_run_shows_what_it_was_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(save_config(load_config("tiny", ["optim.lr=0.125"])))
    assert main(["config", str(tmp_path)]) == 0
    assert "  lr: 0.125" in capsys.readouterr().out
    assert main(["config", str(tmp_path), "optim.lr=1"]) == 2
    (tmp_path / "config.yaml").write_text(f"{MONITOR_SETTINGS}\nlr: 1\n")
    assert main(["config", str(tmp_path)]) == 2
    assert "the settings of another program" in capsys.readouterr().err


def test_an_unknown_source_is_refused_with_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "tinny"]) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err
