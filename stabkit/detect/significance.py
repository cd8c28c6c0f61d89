"""Significance of a contrast of evaluations, from the samples behind them."""

import math
from collections.abc import Sequence

import numpy as np

from stabkit.detect.robust import BoolArray, FloatArray, IntArray

FEWEST = 10  # samples below which the scatter of their sums is not known well enough


def paired_p(weights: FloatArray, correct: BoolArray) -> float:
    """Return the one-sided p-value of the weighted sum of accuracies, paired over the samples.

    weights [evals], correct [evals, n]. Each sample has its own weighted sum of answers, so a
    sample that is always right or always wrong gives 0, however its answers are autocorrelated.
    The mean of the sums over its standard error is a normal score (the t statistic of a paired
    test; n is large and the sums are bounded, so the normal law will do). Fewer than FEWEST
    samples, or samples that are all alike, do not show how the sums scatter: then `unpaired_p`.
    """
    used = weights != 0
    sums = weights[used] @ correct[used].astype(np.float32)
    # Sums are float32: a deviation of 1e-6 is rounding, not scatter.
    if sums.size >= FEWEST and (deviation := float(sums.std(ddof=1))) > 1e-6:
        return _upper_tail(float(sums.mean()) / deviation * math.sqrt(sums.size))
    counts = np.full(len(correct), correct.shape[1])
    return unpaired_p(weights, correct.mean(axis=1), counts)


def unpaired_p(weights: FloatArray, accuracy: FloatArray, counts: IntArray) -> float:
    """Return the same p-value from the numbers of samples alone, with the binomial standard error.

    It treats each evaluation as a new draw of samples. Evaluations of the same samples vary less,
    so this test misses more.
    """
    # A perfect score has a binomial variance of 0, which would be certainty. So stay half a sample
    # away from it.
    level = np.clip(accuracy, 0.5 / counts, 1 - 0.5 / counts)
    error = math.sqrt(float(np.sum(weights**2 * level * (1 - level) / counts)))
    return _upper_tail(float(weights @ accuracy) / error)


def _upper_tail(score: float) -> float:
    from scipy import stats  # slow to import, and not needed before the first dip

    return float(stats.norm.sf(score))


def p_value(
    weights: FloatArray, accuracy: FloatArray, counts: IntArray | None, correct: BoolArray | None
) -> float:
    """Return the p-value that what is known of the samples allows: paired, unpaired, or NaN."""
    if correct is not None:
        return paired_p(weights, correct)
    return math.nan if counts is None else unpaired_p(weights, accuracy, counts)


def answer_similarity(one: BoolArray, other: BoolArray) -> float:
    """Return the correlation over samples of how often each is answered correctly.

    one, other [evals, n]: a few evaluations of the same samples, of one run at two times or of two
    runs. NaN if all samples of one of them are answered alike.
    """
    a, b = one.mean(axis=0), other.mean(axis=0)
    if not (a.std() > 0 and b.std() > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Return the p-values corrected by Holm's step-down method (Holm 1979), in the order given.

    `tests` is the number of hypotheses; those without a p-value here count as p = 1.
    """
    tests = len(p_values) if tests is None else tests
    p = np.array(p_values)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    # The smallest p is multiplied by the number of tests, the next by one less, and so on. The
    # running maximum keeps the order: a larger p stays the larger one.
    scaled = np.minimum(1.0, (tests - np.arange(p.size)) * p[order])
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]
