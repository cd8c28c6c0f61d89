"""Every setting of a configuration as commented YAML: its value, what it may be, its default."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from stabkit.config.run import RunConfig
from stabkit.config.section import MANY, Section
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


def allowed(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """Return in words what a type allows; `bounds` are what stands beside it in `Annotated`."""
    kinds, kind = get_args(annotation), get_origin(annotation) or annotation
    if kind is Annotated:
        inner, *beside = kinds
        return allowed(inner, [*bounds, *beside])
    if kind is Literal:
        *first, last = map(str, kinds)
        return f"{', '.join(first)} or {last}" if first else last
    if kind in (Union, UnionType):
        return ", or ".join(map(allowed, kinds))
    if kind is tuple:
        return f"a list: each {allowed(kinds[0])}"
    words = {bool: "true or false", NoneType: "null", int: "a whole number", float: "a number"}
    return " ".join([words.get(kind, "text"), *_range(bounds)])


def _range(bounds: Sequence[Any]) -> Iterator[str]:
    """Yield the bounds in words, but no limit of MANY or more, which only catches mistakes."""
    for bound in bounds:
        if isinstance(bound, FieldInfo):
            yield from _range(bound.metadata)
        for name, word in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "up to")):
            limit = getattr(bound, name, None)
            if limit is not None and limit < MANY:
                yield f"{word} {limit:,}"
