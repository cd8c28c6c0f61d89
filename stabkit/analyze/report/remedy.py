"""Define a remedy: the settings to try, the signs that call for it, and the evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sign = Literal["dips", "early", "bursts", "patch_first", "collapsed", "nonfinite"]
SIGNS: dict[Sign, str] = {
    "dips": "kNN dips",
    "early": "trouble that begins by twice the warm-up",
    "bursts": "gradient bursts",
    "patch_first": "bursts that the patch projection begins",
    "collapsed": "collapse",
    "nonfinite": "non-finite values",
}


@dataclass(frozen=True)
class Evidence:
    """A finding in our words. `source` is a key of `SOURCES`, or empty for arithmetic."""

    text: str
    source: str = ""


@dataclass(frozen=True)
class Remedy:
    """Something to try against instability.

    settings: the override. The first of them is the setting that runs with and without it differ
    in.
    factor: multiplies the value that a run has, instead of setting one.
    toward, instead_of: which runs are compared. With `value`, those with the value against those
    with `instead_of`; with `less` or `more`, the smallest against the largest value that there is.
    answers: how strongly the remedy answers each sign; 3 is the most.
    own_of: the frameworks that have the remedy by default.
    """

    name: str
    how: str
    settings: Mapping[str, Any]
    answers: Mapping[Sign, int]
    supports: tuple[Evidence, ...]
    opposes: tuple[Evidence, ...]
    instead_of: Any = None
    toward: Literal["value", "less", "more"] = "value"
    factor: float | None = None
    own_of: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return next(iter(self.settings))
