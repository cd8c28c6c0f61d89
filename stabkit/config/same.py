"""Whether a configuration is that of a run which exists."""

from pathlib import Path
from typing import Any

from stabkit.config.reading import read_config, run_id
from stabkit.config.run import RunConfig


def differences(path: Path, config: RunConfig) -> list[str]:
    """How `config` differs from the run whose `config.yaml` is `path`: key, both values.

    Empty when their ids are the same. Raises ConfigError when the file is no configuration.
    """
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
