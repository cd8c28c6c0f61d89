"""What a remedy is: the settings to try, the signs that call for it and the evidence."""

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
    """A finding in our words; `source` is a key of `SOURCES`, empty for arithmetic."""

    text: str
    source: str = ""


@dataclass(frozen=True)
class Remedy:
    """`settings` are the override; the first of them is what runs with and without it differ in.

    `factor` multiplies what a run has instead. Runs compare by having the value or `instead_of`,
    or, `toward` less or more, as the smallest and largest value there is. `answers` weighs the
    signs that the remedy is for, 3 the most. `own_of`: frameworks that have it where none is set.
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
