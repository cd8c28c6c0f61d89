"""Test whether events are more frequent in one arm of runs than in another."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stabkit.analyze.intervals import AT_ONCE

EXACT = 50_000  # so many assignments of runs to arms are all looked at; else `DRAWN` random ones
DRAWN = 9_999
ALPHA = 0.05
FloatArray = NDArray[np.float64]


class Counts(NamedTuple):
    """What was counted in the runs of one arm, one entry a run.

    exposure: for how long an event could begin, such as steps outside of dips; None if equal.
    within: what a run can be exchanged within, such as its settings; None if within all runs.
    """

    events: ArrayLike
    exposure: ArrayLike | None = None
    within: Sequence[Hashable] | None = None


class RateTest(NamedTuple):
    """Whether the second arm has more events than the first.

    excess: the events of the second arm beyond those that it would have at the rate of both.
    p_value: two-sided; NaN without events or without exposure in both arms.
    smallest: the smallest p-value that so many runs with these counts allow.
    runs: how many there are in each arm.
    """

    excess: float
    p_value: float
    smallest: float
    runs: tuple[int, int]

    @property
    def too_few(self) -> bool:
        """Whether no outcome could reach p = .05."""
        return not self.smallest <= ALPHA

    def words(self) -> str:
        """Return the p-value in words, and what so few runs allow."""
        if math.isnan(self.p_value):
            return "cannot be tested"
        said = f"p = {self.p_value:.2g}"
        if not self.too_few:
            return f"{said} (runs exchanged)"
        return f"{said}; {self.too_few_words()}"

    def too_few_words(self) -> str:
        return f"too few: such runs cannot show less than p = {self.smallest:.2g}"


def rates_test(first: Counts, second: Counts) -> RateTest:
    """Test equal rates of events by exchanging whole runs between the arms.

    Events cluster in runs, so a test that takes every event as independent errs in 16 to 25 % of
    comparisons at .05. If the arms do not differ, each assignment of the runs to the arms is as
    likely as the one seen: p is the share of assignments whose excess is as large or larger. All
    are looked at if there are at most `EXACT`, else `DRAWN` are drawn with a fixed seed. Runs are
    exchanged only with those of equal `within`: pairs of one seed, or cells of equal settings.

    Raises ValueError if the entries of an arm differ in number.
    """
    one, two = _arm(first), _arm(second)
    runs = len(one[0]), len(two[0])
    events, exposure = (np.concatenate([a, b]) for a, b in zip(one[:2], two[:2], strict=True))
    names = [*one[2], *two[2]]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    within = np.array([numbers[name] for name in names], dtype=int)
    in_second = np.repeat([False, True], runs)
    if not (events.sum() and exposure.sum() > 0):
        return RateTest(math.nan, math.nan, math.nan, runs)
    strata = [within == number for number in range(len(numbers))]
    parts = [(_beyond(events[of], exposure[of]), in_second[of]) for of in strata]
    excess = float(sum(values[chosen].sum() for values, chosen in parts))
    number = math.prod(math.comb(len(chosen), int(chosen.sum())) for _, chosen in parts)
    exact = number <= EXACT
    found = np.abs(_all_sums(parts) if exact else _drawn_sums(parts))
    slack = 1e-9 * max(1.0, float(events.sum()))  # rounding of equal sums in another order
    alike = (found >= abs(excess) - slack).sum()
    extreme = (found >= found.max() - slack).sum()
    # a draw never shows p = 0, so the assignment seen counts among those drawn
    p_value, smallest = (
        float(count / number if exact else (count + 1) / (DRAWN + 1)) for count in (alike, extreme)
    )
    return RateTest(excess, p_value, smallest, runs)


def _arm(counts: Counts) -> tuple[FloatArray, FloatArray, list[Hashable]]:
    events = np.asarray(counts.events, dtype=float)
    exposure = np.ones(events.size) if counts.exposure is None else counts.exposure
    within: list[Hashable] = [None] * events.size
    if counts.within is not None:
        within = list(counts.within)
    lengths = (events.size, np.size(exposure), len(within))
    if len(set(lengths)) > 1:
        raise ValueError("events, exposure and within have {}, {} and {} entries".format(*lengths))
    return events, np.asarray(exposure, dtype=float), within


def _beyond(events: FloatArray, exposure: FloatArray) -> FloatArray:
    """Return the events of each run beyond those at the common rate; they add up to 0."""
    whole = exposure.sum()
    return events - (events.sum() / whole * exposure if whole > 0 else events)


def _all_sums(parts: list[tuple[FloatArray, NDArray[np.bool_]]]) -> FloatArray:
    """Return the second arm's excess under every assignment."""
    sums = np.zeros(1)
    for values, chosen in parts:
        places = list(itertools.combinations(range(len(values)), int(chosen.sum())))
        own = values[np.array(places, dtype=int)].sum(axis=1)
        sums = (sums[:, None] + own).ravel()
    return sums


def _drawn_sums(parts: list[tuple[FloatArray, NDArray[np.bool_]]]) -> FloatArray:
    """Return the second arm's excess under `DRAWN` random assignments."""
    rng, sums = np.random.default_rng(0), np.zeros(DRAWN)
    for values, chosen in parts:
        rows = max(1, AT_ONCE // len(values))
        for first in range(0, DRAWN, rows):
            part = slice(first, min(first + rows, DRAWN))
            shape = (part.stop - first, len(values))
            shuffled = rng.permuted(np.broadcast_to(values, shape), axis=1)
            sums[part] += shuffled[:, : int(chosen.sum())].sum(axis=1)
    return sums
