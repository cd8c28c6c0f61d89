"""Exact tests and intervals of a few branches against a few others.

The branch is the unit: two branches that differ by one rounding answer the same images differently,
so a test that pairs images between branches would call any two of them different.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MOST, DRAWN = 200_000, 100_000  # divisions that are counted, and drawn where there are more


class Share(NamedTuple):
    """How many of some branches repeat the event."""

    events: int
    of: int

    @property
    def value(self) -> float:
        """The share; NaN without branches."""
        return self.events / self.of if self.of else math.nan

    def words(self) -> str:
        return f"{self.events} of {self.of}"


@cache
def fewer(these: Share, others: Share) -> float:
    """Return Fisher's one-sided p-value that the event is no rarer in these than in the others.

    1 if either is empty: nothing is known.
    """
    if not these.of or not others.of:
        return 1.0
    table = [
        [these.events, these.of - these.events],
        [others.events, others.of - others.events],
    ]
    return float(stats.fisher_exact(table, alternative="less").pvalue)


@cache
def fewer_of_few(these: Share, others: Share) -> float:
    """Return Boschloo's one-sided p-value that the event is no rarer in these than in the others.

    It is exact as Fisher's, and finds more where there are only three or four of each: it does not
    take the number of events among all of them as given. 1 if either is empty.
    """
    if not these.of or not others.of:
        return 1.0
    table = [
        [these.events, others.events],
        [these.of - these.events, others.of - others.events],
    ]
    return float(stats.boschloo_exact(table, alternative="less").pvalue)


def smallest(these: int, others: int) -> float:
    """Return the smallest p-value that `fewer` can give so many branches: none against all."""
    return 1 / math.comb(these + others, these)


def lower(these: Sequence[float], others: Sequence[float]) -> float:
    """Return the one-sided p-value that the mean of these is no lower than that of the others.

    Every division of the values into two groups of these sizes counts. If there are more than MOST,
    DRAWN random ones count, with a fixed seed, and the division seen is one of them. NaN if a group
    is empty or a value is not known.
    """
    values = np.array([*these, *others], dtype=float)
    if not len(these) or not len(others) or np.isnan(values).any():
        return math.nan
    if math.comb(len(values), len(these)) > MOST:
        rng = np.random.default_rng(0)
        chosen = rng.permuted(np.tile(np.arange(len(values)), (DRAWN, 1)), axis=1)[:, : len(these)]
        chosen[0] = np.arange(len(these))
    else:
        chosen = divisions(len(values), len(these))
    sums = values[chosen].sum(axis=1)
    # sums that differ only in the order of their terms are equal
    bound = values[: len(these)].sum() + 1e-9 * np.abs(values).sum()
    return float(np.mean(sums <= bound))


@cache
def divisions(of: int, count: int) -> NDArray[np.int8]:
    """Return [divisions, count]: every way to choose so many places; the first ones come first."""
    flat = chain.from_iterable(combinations(range(of), count))
    return np.fromiter(flat, np.int8).reshape(-1, count)


@cache
def share_interval(share: Share, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson)."""
    if not share.of:
        return 0.0, 1.0
    found = stats.binomtest(*share).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def prevented_fraction(these: Share, others: Share) -> tuple[float, float, float]:
    """Return 1 - p1 / p0 and an interval that covers it with at least 95 %.

    Each share is within its exact 97.5 % interval, so the ratio is within that of their ends. The
    lower end is -inf where the others' share may be 0; NaN if none of the others has the event.
    """
    if not others.events or not these.of:
        return math.nan, -math.inf, 1.0
    low1, high1 = share_interval(these, 0.975)
    low0, high0 = share_interval(others, 0.975)
    return 1 - these.value / others.value, 1 - high1 / low0, 1 - low1 / high0


def same_direction(better: int, worse: int) -> float:
    """Return the two-sided p-value of the sign test: events that a change makes rarer or not."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
