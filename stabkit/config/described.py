"""Every setting of a configuration as commented YAML: its value, what it may be, its default."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stabkit.config.allowed import allowed
from stabkit.config.run import RunConfig
from stabkit.config.section import Section
from stabkit.yamlio import dump_yaml

COLUMN = 34  # where the comments begin


@dataclass(frozen=True)
class Line:
    """A line of YAML. `differs`: it holds a setting that is not at its default."""

    text: str
    comment: str = ""
    differs: bool = False

    def __str__(self) -> str:
        return f"{self.text:<{COLUMN}}  # {self.comment}" if self.comment else self.text


def described(config: RunConfig, varied: Mapping[str, Sequence[Any]] | None = None) -> list[Line]:
    """Return every setting as a line that `train` can read again, the sections with their doc.

    `varied`: the values of the settings that a sweep varies, by dotted key.
    """
    lines = []
    for name, section in _settings(config):
        if isinstance(section, Section):
            lines += [Line(""), Line(f"{name}:"), *_doc(section)]
            lines += [
                _line(section, key, value, f"{name}.", varied or {})
                for key, value in _settings(section)
            ]
        else:
            lines.append(_line(config, name, section, "", varied or {}))
    return lines


def _settings(section: Section) -> list[tuple[str, Any]]:
    found = [(name, getattr(section, name)) for name in type(section).model_fields]
    return [pair for pair in found if pair != ("branch", None)]  # only `stabkit branch` sets it


def _doc(section: Section) -> Iterator[Line]:
    for line in inspect.cleandoc(type(section).__doc__ or "").splitlines():
        yield Line(f"  # {line}".rstrip())


def _line(
    section: Section, key: str, value: Any, prefix: str, varied: Mapping[str, Sequence[Any]]
) -> Line:
    field = type(section).model_fields[key]
    default = field.default
    values = varied.get(prefix + key, ())
    parts = [f"varied: {', '.join(map(in_yaml, values))}"] if values else []
    parts += [f"default {in_yaml(default)}"] * (value != default)
    parts += [allowed(field.annotation, field.metadata)]
    indent = "  " if prefix else ""
    comment = "; ".join(part for part in parts if part)
    return Line(f"{indent}{key}: {in_yaml(value)}", comment, value != default)


def in_yaml(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, str):
        return dump_yaml({"k": value}).removeprefix("k: ").rstrip("\n")
    return json.dumps(value)
