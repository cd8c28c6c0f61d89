"""Tests and 95 % intervals for few runs, and the smallest effect that they can show."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)
AT_ONCE = 2**21  # values of resamples in memory at once: 16 MB, and as much for their places
ENOUGH = 8  # values; with fewer, a bootstrap covers too little: see `bootstrap_interval`


def share_test(hits: int, total: int) -> tuple[Interval, float]:
    """Return the Clopper-Pearson interval of a share, and the p-value that it is a half.

    Both are exact: the interval covers the true share with at least 95 %, whatever the share is.
    NaN if `total` is 0.
    """
    if not total:
        return UNKNOWN, math.nan
    test = stats.binomtest(hits, total)
    interval = test.proportion_ci(0.95, method="exact")
    return (float(interval.low), float(interval.high)), float(test.pvalue)


class MeanTest(NamedTuple):
    """The mean of `n` values, its 95 % interval and the two-sided p-value that it is 0."""

    n: int
    mean: float
    interval: Interval
    p_value: float


def student_test(values: ArrayLike) -> MeanTest:
    """Test whether the mean of values, such as differences of paired runs, is 0 (Student's t).

    NaN are left out. Interval and p-value are NaN for fewer than two values and for equal values,
    which show no spread to judge by.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    mean = float(x.mean()) if x.size else math.nan
    if x.size < 2 or np.ptp(x) == 0:
        return MeanTest(x.size, mean, UNKNOWN, math.nan)
    half = float(stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    p_value = float(stats.ttest_1samp(x, 0).pvalue)
    return MeanTest(x.size, mean, (mean - half, mean + half), p_value)


def bootstrap_interval(values: ArrayLike) -> Interval:
    """Return the BCa bootstrap interval of the mean; NaN for fewer than `ENOUGH` values.

    It uses 9,999 resamples and a fixed seed. With three normal values it would hold the true mean
    in 74 % of samples, with eight in 87 %, with twenty in 92 % (Student's: 95 % for all three).
    With exponential values it holds it in 69, 85 and 91 % (Student's: 89, 89 and 92 %).
    """
    x = np.asarray(values, dtype=float)
    if x.size < ENOUGH or np.ptp(x) == 0:
        return UNKNOWN
    found = stats.bootstrap(
        (x,), np.mean, method="BCa", random_state=np.random.default_rng(0),
        batch=max(1, AT_ONCE // x.size),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def detectable_effect(
    sd: float, n: int, second: int | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest true difference that a two-sided t test finds with probability `power`.

    sd: of the differences of `n` pairs; or, with `second` values in the other arm, of the values
    within an arm. NaN if there is no test: one pair, or no spread.
    """
    freedom = n - 1 if second is None else n + second - 2
    if freedom < 1 or min(n, second or n) < 1 or not sd > 0:
        return math.nan
    error = math.sqrt(1 / n) if second is None else math.sqrt(1 / n + 1 / second)
    bar = stats.t.ppf(1 - alpha / 2, freedom)

    def missing(shift: float) -> float:
        # The square of a noncentral t is a noncentral F. We use F because scipy's noncentral t
        # gives NaN for one or two degrees of freedom.
        return power - float(stats.ncf.sf(bar**2, 1, freedom, shift**2))

    return sd * error * float(optimize.brentq(missing, 0.0, 4 * bar + 4))


def rates_p_value(events: int, exposure: float, others: int, other_exposure: float) -> float:
    """Test whether two Poisson rates are equal: two-sided, exact; NaN without events."""
    if not (events + others and exposure > 0 and other_exposure > 0):
        return math.nan
    share = exposure / (exposure + other_exposure)
    return float(stats.binomtest(events, events + others, share).pvalue)
