"""Logs of other tools: named series of numbers, and what was left out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.config import suggest
from stabkit.printing import first_of

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SHOWN = 12  # names that an error lists


class ConvertError(ValueError):
    """The source or the request cannot be converted; the message says why.

    `options` are those that would make it work, if one can tell.
    """

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


@dataclass(frozen=True)
class Series:
    """`steps` and `values`, [points]; in the order written until `settled`."""

    steps: IntArray
    values: FloatArray

    def settled(self) -> "Series":
        """Return it in step order; the value written last wins if a step has several."""
        last_first = np.argsort(self.steps[::-1], kind="stable")
        steps = self.steps[::-1][last_first]
        kept = np.ones(steps.size, dtype=bool)
        kept[1:] = steps[1:] != steps[:-1]
        return Series(steps[kept], self.values[::-1][last_first][kept])

    def replaced(self, settled: "Series") -> int:
        """Return how many values differ from the one that `settled` kept at their step."""
        kept = settled.values[np.searchsorted(settled.steps, self.steps)]
        return int(np.sum((self.values != kept) & ~(np.isnan(self.values) & np.isnan(kept))))


@dataclass
class Log:
    """One run as another tool logged it.

    `left_out` says what is not a series of numbers, and why. `layout` is what stabkit's own export
    says about where its tags belong. `silent`: first, last and number of the steps whose rows
    hold no value.
    """

    name: str
    series: dict[str, Series] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    silent: tuple[int, int, int] | None = None


def shown(name: str, width: int = 80) -> str:
    """Return a name from outside in a form that is safe on a terminal line."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= width else f"{text[: width - 1]}…"


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    return first_of(map(shown, names), most)


def suggest_name(word: str, known: Sequence[str]) -> str:
    """Return the hint of `suggest` for names that come from outside and may be thousands."""
    hint = suggest(word, known)
    return shown(hint, 200) if hint.startswith("; did you mean") else f"; there is {listed(known)}"


def tidy(name: str, allowed: str | None = None) -> str:
    """Return a name fit for tables and figures: no control characters, at most 200 characters.

    With `allowed`, a character class, every other character becomes `_` too.
    """
    text = "".join(c if c.isprintable() else "_" for c in name)
    return (re.sub(f"[^{allowed}]", "_", text) if allowed else text)[:200] or "_"
