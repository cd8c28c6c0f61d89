"""Define a remedy: what to try, in settings and in torch, the signs that call for it, evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sign = Literal[
    "dips", "early", "bursts", "patch_first", "at_once", "collapsed", "nonfinite", "loss_spikes",
    "loss_left", "stuck",
]  # fmt: skip
SIGNS: dict[Sign, str] = {
    "dips": "falls of accuracy",
    "early": "trouble that begins early",
    "bursts": "gradient bursts",
    "patch_first": "bursts that the patch projection begins",
    "at_once": "bursts of most layers in one step",
    "collapsed": "collapse",
    "nonfinite": "non-finite values",
    "loss_spikes": "loss spikes",
    "loss_left": "a loss that left for good",
    "stuck": "a loss that never fell",
}
Part = Literal["patch_embed", "attention", "heads", "adam"]


@dataclass(frozen=True)
class Evidence:
    """A finding in our words. `source` is a key of `SOURCES`, or empty for arithmetic.

    about: the part that a model must have for the finding to concern it; None if it always does.
    """

    text: str
    source: str = ""
    about: Part | None = None


@dataclass(frozen=True)
class Remedy:
    """Something to try against instability.

    settings: the override for a run of `stabkit train`; empty if there is none. The first of them
    is the setting that runs with and without it differ in.
    torch: the lines for anybody's loop, with the names of `torch_lines` in braces.
    factor: multiplies the value that a run has, instead of setting one.
    toward, instead_of: which runs are compared. With `value`, those with the value against those
    with `instead_of`; with `less` or `more`, the smallest against the largest value that there is.
    answers: how strongly the remedy answers each sign; 3 is the most.
    needs: the parts that a model must have for the remedy to make sense.
    own_of: the frameworks that have the remedy by default.
    """

    name: str
    how: str
    settings: Mapping[str, Any]
    torch: str
    answers: Mapping[Sign, int]
    supports: tuple[Evidence, ...]
    opposes: tuple[Evidence, ...]
    instead_of: Any = None
    toward: Literal["value", "less", "more"] = "value"
    factor: float | None = None
    needs: tuple[Part, ...] = ()
    own_of: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return next(iter(self.settings), "")
