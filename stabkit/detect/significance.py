"""Significance of a contrast of evaluations, from the samples behind them."""

import math
from collections.abc import Sequence

import numpy as np

from stabkit.detect.robust import BoolArray, FloatArray, IntArray

FEWEST = 10


def paired_p(weights: FloatArray, correct: BoolArray) -> float:
    """One-sided p-value of the weighted sum of accuracies, paired over the samples.

    weights [evals], correct [evals, n]: each sample has its own weighted sum of answers; their mean
    over its standard error is a normal score (n is large, sums are bounded). What a sample's
    answers have in common over time cancels, however they are autocorrelated. Fewer than FEWEST
    samples, or samples that are all alike, do not show how they scatter: then `unpaired_p`.
    """
    used = weights != 0
    sums = weights[used] @ correct[used].astype(np.float32)
    if sums.size >= FEWEST and (spread := float(sums.std(ddof=1))) > 1e-6:  # sums are float32
        return _upper_tail(float(sums.mean()) / spread * math.sqrt(sums.size))
    counts = np.full(len(correct), correct.shape[1])
    return unpaired_p(weights, correct.mean(axis=1), counts)


def unpaired_p(weights: FloatArray, accuracy: FloatArray, counts: IntArray) -> float:
    """The same where only the numbers of samples are known: as if each evaluation drew its own.

    Evaluations of the same samples vary less, so that this misses more.
    """
    level = np.clip(accuracy, 0.5 / counts, 1 - 0.5 / counts)  # no certainty from a perfect score
    error = math.sqrt(float(np.sum(weights**2 * level * (1 - level) / counts)))
    return _upper_tail(float(weights @ accuracy) / error)


def _upper_tail(score: float) -> float:
    from scipy import stats  # slow to import, and no need before the first dip

    return float(stats.norm.sf(score))


def p_value(
    weights: FloatArray, accuracy: FloatArray, counts: IntArray | None, correct: BoolArray | None
) -> float:
    """By what is known of the samples: paired, unpaired, or NaN."""
    if correct is not None:
        return paired_p(weights, correct)
    return math.nan if counts is None else unpaired_p(weights, accuracy, counts)


def answer_similarity(one: BoolArray, other: BoolArray) -> float:
    """Correlation over the samples of how often each is answered correctly; NaN without spread.

    one, other [evals, n]: a few evaluations of the same samples, of one run at two times or of two.
    """
    a, b = one.mean(axis=0), other.mean(axis=0)
    if not (a.std() > 0 and b.std() > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Holm's step-down, in the order given; of `tests` hypotheses those not given have p = 1."""
    tests = len(p_values) if tests is None else tests
    p = np.array(p_values)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    scaled = np.minimum(1.0, (tests - np.arange(p.size)) * p[order])
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]
