"""The comparison of a configuration with that of an existing run."""

from pathlib import Path
from typing import Any

from stabkit.config.reading import read_config, run_id
from stabkit.config.run import RunConfig


def differences(path: Path, config: RunConfig) -> list[str]:
    """List how `config` differs from the run whose `config.yaml` is `path`: key and both values.

    The list is empty when their ids are equal. Raises ConfigError for a file that is no
    configuration.
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
