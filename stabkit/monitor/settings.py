"""The settings of a training that a Monitor is given, as the `config.yaml` of its run."""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from stabkit.rundir import MONITOR_SETTINGS, RunDir, atomic_write, read_file, refuse_link
from stabkit.yamlio import MAX_DEPTH, dump_yaml, flat, parse_yaml

KINDS = "give text, numbers, booleans, None, and lists and dictionaries of these"


def plain_settings(config: Any) -> dict[str, Any]:
    """Return settings as plain data. Takes a dictionary, a dataclass or an argparse.Namespace.

    Raises TypeError or ValueError that names every key whose value a file cannot hold.
    """
    if _entries(config) is None:
        raise TypeError(
            f"Monitor: config is of type {type(config).__name__}; give a dictionary, a dataclass "
            "or an argparse.Namespace"
        )
    wrong: list[str] = []
    content = _plain(config, "", wrong)
    names = [name for name, _ in flat(content)]
    wrong += [f"{n} is there twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if wrong:
        raise ValueError(f"Monitor: config cannot be written: {'; '.join(wrong)}; {KINDS}")
    return dict(content)


def earlier_settings(rundir: RunDir) -> dict[str, Any]:
    """Return the settings that an earlier Monitor left in the folder; empty if none did.

    Raises ValueError for a `config.yaml` that is not a Monitor's or is damaged, and LinkedError for
    a link.
    """
    file = rundir.config_file
    refuse_link(file)
    if not file.exists():
        return {}
    text = read_file(file).decode(errors="replace")
    if not text.startswith(MONITOR_SETTINGS):
        raise ValueError(
            f"{file}: was not written by a Monitor, and is read as the settings of this run; leave "
            "out config=, or name another folder"
        )
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; remove it, or name another folder") from None
    return dict(flat(content)) if isinstance(content, dict) else {}


def write_settings(rundir: RunDir, content: Mapping[str, Any] | None, goes_on: bool) -> None:
    """Write the settings of the run.

    `goes_on`: whether the run holds earlier steps. Where it starts over without settings, those of
    the steps that were removed are removed too.
    """
    file = rundir.config_file
    if content is not None:
        atomic_write(file, f"{MONITOR_SETTINGS}\n{dump_yaml(dict(content))}".encode())
    elif not goes_on and file.is_file() and read_file(file).startswith(MONITOR_SETTINGS.encode()):
        file.unlink()


def changes(before: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """Return in words which settings change when a run goes on."""
    now = dict(flat(content))
    return [
        f"config: {key} was {before.get(key)!r} and is {now.get(key)!r} from here on"
        for key in dict.fromkeys([*before, *now])
        if repr(before.get(key)) != repr(now.get(key))
    ]


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """Return the entries of what holds named values; None for anything else."""
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return vars(value) if isinstance(value, Namespace) else None


def _plain(value: Any, name: str, wrong: list[str], depth: int = 0) -> Any:
    """Return a value as plain data; add to `wrong` the name of what cannot be plain data."""
    if depth >= MAX_DEPTH - 1:
        wrong.append(f"{name[:40]}… is nested too deeply")
        return None
    entries = _entries(value)
    if entries is not None:
        wrong += [
            f"{name or 'a key'}: {key!r} is no text" for key in entries if type(key) is not str
        ]
        within = f"{name}." if name else ""
        return {
            str(key): _plain(inner, f"{within}{key}", wrong, depth + 1)
            for key, inner in entries.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}[{i}]", wrong, depth + 1) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    if value is not None and kind is None:
        wrong.append(f"{name} is of type {type(value).__name__}")
        return None
    leaf = value if kind is None else kind(value)  # an enum of numbers becomes its number
    if not _is_kept(name, leaf):
        wrong.append(f"{name} is {str(leaf)[:40]!r}")
    return leaf


def _is_kept(name: str, leaf: Any) -> bool:
    """Return whether a file gives back what was written to it."""
    key = name.rpartition(".")[2]
    try:
        text = dump_yaml({key: leaf})
        return bool(text.encode() and repr(parse_yaml(text)) == repr({key: leaf}))
    except ValueError:  # surrogates, integers of thousands of digits
        return False
