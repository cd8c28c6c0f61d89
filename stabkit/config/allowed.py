"""What a setting may be, in words: for the page of all settings, and for errors."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from stabkit.config.section import MANY, Section


def allowed_at(model: type[Section], path: Sequence[str | int]) -> str | None:
    """Return what the setting at a path of keys and indices may be; None for no setting."""
    annotation: Any = model
    bounds: Sequence[Any] = ()
    for part in path:
        if isinstance(part, int) and get_origin(annotation) in (tuple, list):
            annotation, bounds = get_args(annotation)[0], ()
            continue
        kinds = (annotation, *get_args(annotation))  # a section, or `Section | None`
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
        if section is None or part not in section.model_fields:
            return None
        field = section.model_fields[str(part)]
        annotation, bounds = field.annotation, field.metadata
    return allowed(annotation, bounds)


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
    if kind in (tuple, list):
        length = f" of {len(kinds)}" if kind is tuple and kinds[-1] is not Ellipsis else ""
        return f"a list{length}: each {allowed(kinds[0])}"
    if isinstance(kind, type) and issubclass(kind, Section):
        return f"settings, such as {{{next(iter(kind.model_fields))}: …}}"
    words = {bool: "true or false", NoneType: "null", int: "a whole number", float: "a number"}
    return " ".join([words.get(kind, "text"), *_range(bounds)])


def _range(bounds: Sequence[Any]) -> Iterator[str]:
    """Yield the bounds in words, but no limit of MANY or more, which only catches mistakes."""
    for bound in bounds:
        if isinstance(bound, FieldInfo):
            yield from _range(bound.metadata)
        for name, word in (
            ("gt", "above"),
            ("ge", "from"),
            ("lt", "below"),
            ("le", "up to"),
            ("multiple_of", "in multiples of"),
        ):
            limit = getattr(bound, name, None)
            if limit is not None and limit < MANY:
                yield f"{word} {limit:,}"
