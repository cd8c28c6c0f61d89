"""The comparison of a configuration with that of an existing run."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from stabkit.config.reading import ConfigError, read_config, run_id, settings_to_save, validate
from stabkit.config.run import RunConfig, RuntimeConfig
from stabkit.yamlio import dump_yaml, parse_yaml


def differences(path: Path, config: RunConfig) -> list[str]:
    """List how `config` differs from the run whose `config.yaml` is `path`: key and both values.

    The list is empty when their ids are equal. Raises ConfigError for a file that is no
    configuration.
    """
    if _is_as_saved(path, config):
        return []
    recorded = read_config(path)
    if run_id(recorded) == run_id(config):
        return []
    there, asked = _flat(recorded), _flat(config)
    return [
        f"{key}: {there.get(key)!r} there, {asked.get(key)!r} asked"
        for key in {**there, **asked}
        if there.get(key) != asked.get(key)
    ]


def _flat(config: RunConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude={"runtime"})
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


def _is_as_saved(path: Path, config: RunConfig) -> bool:
    """Return whether the file is what `save_config` writes of these settings, `runtime` apart.

    This holds for nearly every run that a sweep finds, and saves parsing ten thousand files.
    """
    if not path.is_file():  # reading a pipe would block for ever
        return False
    try:
        there = re.split(r"^(?=\S)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    except (OSError, ValueError):
        return False
    settings = settings_to_save(config)
    if [section.partition(":")[0] for section in there] != list(settings):
        return False
    return all(
        _is_runtime(section) if name == "runtime" else section == _saved(name, json.dumps(value))
        for section, (name, value) in zip(there, settings.items(), strict=True)
    )


@cache  # without a limit: a seed comes back only after all other seeds of a sweep
def _saved(name: str, value: str) -> str:
    return dump_yaml({name: json.loads(value)})


@cache
def _is_runtime(section: str) -> bool:
    try:
        validate(RuntimeConfig, parse_yaml(section)["runtime"], "")
    except (ConfigError, ValueError, TypeError):
        return False
    return True
