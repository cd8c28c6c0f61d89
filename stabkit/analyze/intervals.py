"""95 % intervals of rates, shares and means of few runs, and the smallest effect they can show."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)
ENOUGH = 8  # values from which on a bootstrap is worth its name: see `bootstrap_interval`


def rate_interval(events: int, exposure: float) -> Interval:
    """Exact Poisson (Garwood) interval of events per unit of exposure; NaN without exposure.

    Takes events as independent. Events that come in clusters vary more than it says.
    """
    if not exposure > 0:
        return UNKNOWN
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    return float(low) / exposure, float(stats.chi2.ppf(0.975, 2 * events + 2)) / 2 / exposure


def share_interval(hits: int, total: int) -> Interval:
    """Clopper-Pearson, exact: covers at least 95 % whatever the share; NaN of nothing."""
    if not total:
        return UNKNOWN
    interval = stats.binomtest(hits, total).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def student_interval(values: ArrayLike) -> Interval:
    """Of the mean. NaN for fewer than two values, or equal ones: they show no spread to judge by"""
    x = np.asarray(values, dtype=float)
    if x.size < 2 or np.ptp(x) == 0:
        return UNKNOWN
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return float(x.mean() - half), float(x.mean() + half)


def bootstrap_interval(values: ArrayLike) -> Interval:
    """BCa bootstrap of the mean, 9,999 resamples, a fixed seed; NaN for fewer than `ENOUGH` values.

    Of three normal values it would hold the mean in 74 % of samples, of eight in 87 %, of twenty
    in 92 % (Student's: 95 % of all); of exponential ones in 69, 85, 91 % (Student's 89, 89, 92).
    """
    x = np.asarray(values, dtype=float)
    if x.size < ENOUGH or np.ptp(x) == 0:
        return UNKNOWN
    found = stats.bootstrap((x,), np.mean, method="BCa", random_state=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_interval(values: ArrayLike) -> Interval:
    """Of the mean of amounts, over runs: BCa from `ENOUGH` values on, Student's below.

    Never below 0 where no value is. Too narrow for few runs: where three runs in five lose nothing
    and the others an exponential amount it holds the mean in 69 % of samples of three, 80 % of
    eight, 90 % of twenty.
    """
    x = np.asarray(values, dtype=float)
    low, high = bootstrap_interval(x)
    if math.isnan(low):
        low, high = student_interval(x)
    return (max(low, 0.0), high) if x.size and x.min() >= 0 else (low, high)


def detectable_effect(
    sd: float, n: int, second: int | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true difference that a two-sided t test would find with that probability.

    sd: of the differences of `n` pairs; or, with `second` values in another arm, of the values of
    either arm. NaN where there is no test: one pair, or no spread.
    """
    freedom = n - 1 if second is None else n + second - 2
    if freedom < 1 or min(n, second or n) < 1 or not sd > 0:
        return math.nan
    error = math.sqrt(1 / n) if second is None else math.sqrt(1 / n + 1 / second)
    bar = stats.t.ppf(1 - alpha / 2, freedom)

    def missing(shift: float) -> float:
        # of the square: for one or two degrees of freedom scipy's noncentral t itself gives NaN
        return power - float(stats.ncf.sf(bar**2, 1, freedom, shift**2))

    return sd * error * float(optimize.brentq(missing, 0.0, 4 * bar + 4))


def rates_p_value(events: int, exposure: float, others: int, other_exposure: float) -> float:
    """Two-sided exact test that two Poisson rates are equal; NaN without events or exposure."""
    if not (events + others and exposure > 0 and other_exposure > 0):
        return math.nan
    share = exposure / (exposure + other_exposure)
    return float(stats.binomtest(events, events + others, share).pvalue)
