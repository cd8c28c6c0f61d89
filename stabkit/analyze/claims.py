"""A claim of a paper against runs: holds, fails or is undecided, always with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What was claimed, the effect measured in the claimed direction and its 95 % interval."""

    text: str
    verdict: Verdict
    effect: float
    low: float
    high: float
    unit: str
    n: int

    def __str__(self) -> str:
        found = f"{self.effect:+.2f} {self.unit}, 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.verdict.upper():<10}{self.text}\n          {found}, n = {self.n}"


def mean_above_zero(text: str, differences: Sequence[float], unit: str) -> Claim:
    """Paired differences, positive as claimed: Student's interval for their mean."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean()) if len(values) else math.nan
    low, high = -math.inf, math.inf
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        low, high = mean - half, mean + half
    return Claim(text, _verdict(low, high), mean, low, high, unit, len(values))


def more_events(text: str, claimed_more: int, claimed_less: int) -> Claim:
    """Event counts of two arms watched for the same number of steps, as a log2 ratio of rates.

    Exact: of all events, the share in the first arm is binomial (Clopper-Pearson interval). Events
    of one run are taken as independent, which clustered events are not: the interval is a lower
    bound of the uncertainty.
    """
    total = claimed_more + claimed_less
    low_share, high_share = 0.0, 1.0
    if total:
        interval = stats.binomtest(claimed_more, total).proportion_ci(0.95, method="exact")
        low_share, high_share = float(interval.low), float(interval.high)
    effect, low, high = (
        _log2_odds(share)
        for share in (claimed_more / total if total else 0.5, low_share, high_share)
    )
    return Claim(text, _verdict(low, high), effect, low, high, "(log2 ratio of rates)", total)


def from_interval(text: str, effect: float, low: float, high: float, unit: str, n: int) -> Claim:
    """An effect, positive as claimed, with an interval measured elsewhere."""
    return Claim(text, _verdict(low, high), effect, low, high, unit, n)


def _log2_odds(share: float) -> float:
    if share in (0.0, 1.0):
        return math.inf if share else -math.inf
    return math.log2(share / (1 - share))


def _verdict(low: float, high: float) -> Verdict:
    if low > 0:
        return "holds"
    return "fails" if high < 0 else "undecided"
