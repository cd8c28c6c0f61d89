"""The settings that a framework trains with, for the Monitor's `config=`: plain, and no secrets."""

import inspect
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from stabkit.monitor.param_groups import group_settings
from stabkit.monitor.settings import earlier_settings, plain_settings
from stabkit.rundir import RunDir
from stabkit.yamlio import flat

# A name with one of these words may hold a secret. `token` and `key` are common in settings that
# are numbers (`max_tokens`, `num_key_value_heads`), which are no secrets.
SECRET = re.compile(r"secret|passw|credential|private|api_?key|webhook", re.IGNORECASE)
SECRET_TEXT = re.compile(r"token|key|auth|login|bearer", re.IGNORECASE)

LONGEST = 1000  # characters of a text, entries of a list: longer ones are data
# how an optimizer computes its step, not what
COMPUTING = ("foreach", "fused", "capturable", "differentiable")


def with_settings(
    folder: str | Path, options: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a Monitor in `folder` with the framework's `own` settings in `config`.

    What the user's `config` sets comes before them. If there is none, and the folder has a
    `config.yaml` that no Monitor wrote, that holds the settings, and nothing is added. Raises what
    `plain_settings` raises for the user's.
    """
    given = options.get("config")
    if given is None:
        try:
            earlier_settings(RunDir(Path(folder)))
        except (OSError, ValueError):
            return dict(options)
    asked = {} if given is None else dict(flat(plain_settings(given)))
    kept = {name: setting for name, setting in flat(plain(own)) if _can_be_written(name, setting)}
    return {**options, "config": {**kept, **asked}}


def plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the settings that are numbers, text, or lists and dictionaries of these.

    What else there is (None, modules, functions, long texts and lists) is left out, and so is what
    may be a secret.
    """
    found = {str(name): _plain(str(name), setting) for name, setting in settings.items()}
    return {name: setting for name, setting in found.items() if setting is not None}


def of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Return its kind and its options; a list where groups differ.

    `lr` is the one that it was made with, where a scheduler of torch has kept it.
    """
    groups = [group_settings(group) for group in optimizer.param_groups]
    for group in groups:
        if (made_with := group.pop("initial_lr", None)) is not None:
            group["lr"] = made_with
    options = {}
    names = dict.fromkeys(name for group in groups for name in group if name not in COMPUTING)
    for name in names:
        of_groups = [group[name] for group in groups if name in group]
        is_one = all(option == of_groups[0] for option in of_groups)
        options[name] = of_groups[0] if is_one else of_groups
    return {"name": type(optimizer).__name__, **options}


def of_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return its kind and what it was made with, as far as it keeps that under the same name."""
    asked = [name for name in inspect.signature(type(scheduler)).parameters if name != "last_epoch"]
    kept = {name: getattr(scheduler, name) for name in asked if hasattr(scheduler, name)}
    return {"name": type(scheduler).__name__, **plain(kept)}


def numbered(name: str, settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return settings of several as `name`, `name_1`, `name_2`, …"""
    return {f"{name}_{i}" if i else name: dict(one) for i, one in enumerate(settings)}


def _plain(name: str, setting: Any) -> Any:
    """Return a setting as plain data; None if it is none, or may be a secret."""
    if isinstance(setting, Enum):
        setting = setting.value
    if SECRET.search(name) or (SECRET_TEXT.search(name) and not isinstance(setting, int | float)):
        return None
    if isinstance(setting, Mapping):
        return plain(setting) or None
    if isinstance(setting, list | tuple | str) and len(setting) > LONGEST:
        return None
    if isinstance(setting, list | tuple):
        inner = [_plain(name, one) for one in setting]
        return None if any(one is None for one in inner) else inner
    return setting if isinstance(setting, bool | int | float | str | Path) else None


def _can_be_written(name: str, setting: Any) -> bool:
    try:
        plain_settings({name: setting})
    except ValueError:  # such as text with half a character
        return False
    return True
