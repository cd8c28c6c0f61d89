"""Tests and 95 % intervals of means of few runs, which hold where some runs collapse."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Interval = tuple[float, float]
FloatArray = NDArray[np.float64]
UNKNOWN: Interval = (math.nan, math.nan)
AT_ONCE = 2**21  # values of resamples in memory at once: 16 MB, and as much for their places
RESAMPLES = 9999
TESTED = 3  # values of an arm; fewer are not tested
ENOUGH = 10  # values of an arm; fewer give no interval: see `paired_test`
UNEQUAL = 1.5  # ratio of the sizes of two arms from which Welch's test of few values errs too often
ROUNDING = 1e-9  # of points or fractions; differences of equal accuracies scatter by 1e-14
TOO_FEW = "too few runs for an interval"


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
    """The size of each sample, the mean or the difference of means, its interval, a p-value.

    The p-value is two-sided and of a true mean of 0. Interval or p-value are NaN if there are too
    few values, or if they show no spread to judge by.
    """

    n: tuple[int, ...]
    mean: float
    interval: Interval
    p_value: float


def paired_test(differences: ArrayLike) -> MeanTest:
    """Test whether the mean difference of paired runs is 0. NaN are left out.

    From `ENOUGH` values on, interval and p-value come from the studentized bootstrap (Efron and
    Tibshirani 1993, chapter 12): the wider of its equal-tailed and its symmetric interval. From
    `TESTED` values on, the p-value is Student's, and there is no interval: if a run collapses with
    probability .3, five pairs show no collapse in one case of six, so that no interval of five
    covers the mean. `python -m benchmarks.calibration counts` measures coverage and errors.
    """
    values = _known(differences)
    mean = float(values.mean()) if values.size else math.nan
    if values.size < TESTED or _equal(values):
        return MeanTest((values.size,), mean, UNKNOWN, math.nan)
    if values.size >= ENOUGH:
        return MeanTest((values.size,), mean, *_studentized([(1, values)]))
    return MeanTest((values.size,), mean, UNKNOWN, float(stats.ttest_1samp(values, 0).pvalue))


def unpaired_test(first: ArrayLike, second: ArrayLike) -> MeanTest:
    """Test whether the second mean less the first is 0, for runs that are not paired.

    The same as `paired_test`, with Welch's test for fewer than `ENOUGH` values in an arm. If the
    arms differ in size by a factor of `UNEQUAL`, the larger p-value counts of Welch's test and of a
    permutation test of its statistic: with 3 values against 9, of which half lie far lower, Welch's
    test alone finds a difference in 17 % of cases without any.
    """
    one, two = _known(first), _known(second)
    n, fewest = (one.size, two.size), min(one.size, two.size)
    mean = float(two.mean() - one.mean()) if fewest else math.nan
    if fewest < TESTED or (_equal(one) and _equal(two)):
        return MeanTest(n, mean, UNKNOWN, math.nan)
    if fewest >= ENOUGH:
        return MeanTest(n, mean, *_studentized([(1, two), (-1, one)]))
    p_value = float(stats.ttest_ind(two, one, equal_var=False).pvalue)
    if max(n) >= UNEQUAL * fewest:
        p_value = max(p_value, _permuted(one, two))
    return MeanTest(n, mean, UNKNOWN, p_value)


def _permuted(one: FloatArray, two: FloatArray) -> float:
    """Return the p-value of Welch's statistic among permutations, all of them if they are few."""
    test = stats.permutation_test(
        (one, two), _welch, n_resamples=RESAMPLES, vectorized=True, alternative="greater",
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def _welch(one: FloatArray, two: FloatArray, axis: int) -> FloatArray:
    """Return the size of Welch's t; infinite for arms that differ without any spread."""
    squares = (x.var(axis=axis, ddof=1) / x.shape[axis] for x in (one, two))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(two.mean(axis=axis) - one.mean(axis=axis)) / np.sqrt(sum(squares))
    found: FloatArray = np.nan_to_num(t, nan=0.0, posinf=np.inf)
    return found


def _equal(values: FloatArray) -> bool:
    """Return whether the values are equal but for the rounding of the differences they may be."""
    return bool(np.ptp(values) <= ROUNDING)


def _known(values: ArrayLike) -> FloatArray:
    x = np.asarray(values, dtype=float)
    known: FloatArray = x[~np.isnan(x)]
    return known


def _studentized(samples: list[tuple[int, FloatArray]]) -> tuple[Interval, float]:
    """Return interval and p-value of the signed sum of the samples' means; the seed is fixed."""
    mean = sum(sign * float(x.mean()) for sign, x in samples)
    error = math.sqrt(sum(float(x.var(ddof=1)) / x.size for _, x in samples))
    rng = np.random.default_rng(0)
    shifts, squares = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for sign, x in samples:
        means, variances = _resampled(x, rng)
        shifts += sign * (means - x.mean())
        squares += variances / x.size
    # A resample without spread is infinitely far, unless it sits on the mean.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(shifts) < 1e-9 * error, 0.0, shifts / np.sqrt(squares))
    symmetric = float(np.quantile(np.abs(t), 0.95, method="higher"))
    below, above = np.quantile(t, [0.025, 0.975], method="nearest")
    interval = (mean - max(symmetric, float(above)) * error,
                mean + max(symmetric, -float(below)) * error)  # fmt: skip
    seen = mean / error
    tail = min((t >= seen).sum(), (t <= seen).sum())
    beyond = max(2 * tail, (np.abs(t) >= abs(seen)).sum())
    return interval, min(1.0, float(beyond + 1) / (RESAMPLES + 1))


def _resampled(x: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return means and variances of resamples."""
    means, variances = np.empty(RESAMPLES), np.empty(RESAMPLES)
    rows = max(1, AT_ONCE // x.size)
    for first in range(0, RESAMPLES, rows):
        part = slice(first, min(first + rows, RESAMPLES))
        drawn = x[rng.integers(x.size, size=(part.stop - first, x.size))]
        means[part], variances[part] = drawn.mean(axis=1), drawn.var(axis=1, ddof=1)
    return means, variances
