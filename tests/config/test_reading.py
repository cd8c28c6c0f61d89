"""Presets, files and overrides are read as they are written."""

from pathlib import Path

import pytest

from stabkit.config import (
    ConfigError,
    RunConfig,
    differences,
    load_config,
    preset_names,
    read_config,
    run_id,
    save_config,
)
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


def test_saved_configuration_reads_back_equal(tmp_path, config: RunConfig) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(str(path)) == config
