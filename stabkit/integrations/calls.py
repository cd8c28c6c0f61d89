"""Wraps a method of one object for a while, and restores it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def calling_first(action: Callable[[], object], owner: object, method: str) -> Iterator[None]:
    """Make `owner.method(...)` call `action()` first within the context, for this object alone.

        with calling_first(monitor.before_clipping, scaler, "unscale_"):
            ...

    Raises AttributeError when there is no such method.
    """
    with replaced(owner, method, lambda original: _first(action, original)):
        yield


@contextmanager
def replaced(
    owner: object, method: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace `owner.method` by what `wrap` makes of it, within the context."""
    original = getattr(owner, method)
    own = method in vars(owner)
    setattr(owner, method, wrap(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, method, original)
        else:
            delattr(owner, method)  # the method of the class is visible again


def _first(action: Callable[[], object], original: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        action()
        return original(*args, **kwargs)

    return called
