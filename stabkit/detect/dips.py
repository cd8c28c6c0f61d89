"""Dips: passing losses of an accuracy that is evaluated often on a fixed set of samples."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import integrate, stats

from stabkit.detect.robust import (
    BoolArray,
    FloatArray,
    IntArray,
    checked_series,
    difference_scale,
    noise_scale,
    trailing_median,
)

MEDIAN_OF = 5  # evaluations behind each value of the ceiling
SHORTEST = MEDIAN_OF + 1  # two consecutive evaluations that have a ceiling


@dataclass(frozen=True)
class _Span:
    """Indices of one dip; `recovery` is None when the run ends first."""

    onset: int
    trough: int
    recovery: int | None
    ceiling: float


def find_dips(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    *,
    min_depth: float = 0.01,
    k: float | None = None,
    alpha: float = 0.01,
    chance: float = 0.0,
) -> pd.DataFrame:
    """Evaluations that fall below the running ceiling, twice in a row and beyond the noise.

    accuracy [evals] in 0..1 (NaN: left out); n: samples evaluated, one number or [evals];
    correct: bool [evals, n], the same samples in the same order at every evaluation.

    Ceiling: running maximum of the median of the last five evaluations. It looks back only, so
    later evaluations do not move it (they do refine s and count in the correction), and on a rising
    curve it trails by two evaluations, which errs towards silence.
    A maximum of raw accuracies would be a lucky draw and a false depth.

    A dip is two consecutive evaluations at least max(min_depth, k s) below the ceiling, where s is
    the noise around the local trend of the evaluations that are not flagged. k defaults to 4, to 5
    when the residuals' lag-1 autocorrelation exceeds .1 (that of the noise itself: .25), and to
    log10(evaluations / 100) more in longer runs, whose ceiling has more chances to be high.
    Onset and recovery are the last evaluation before and the first of two after that lie within
    half that threshold; without a return between them, two falls are one dip.

    Significance: with `correct`, the exact one-sided McNemar test of the trough against a
    reference; with `n` alone, Fisher's exact test, which cannot know that the samples are the same
    and so misses more. p_value is Holm-corrected over all evaluations and must be at most `alpha`;
    with neither it is NaN and the noise rule decides alone. The reference is the evaluation that
    is the median of the five up to the onset, since the best one would be chosen for its luck.

    False alarms by the noise rule alone, in flat simulated runs of 100 evaluations: 0.3 % of runs
    with independent noise, 1.5 % with AR(1) .5, but 22 % with AR(1) .8, which is slow enough to
    pass for trend; none of 500 rising runs. With `correct` at most 0.4 % in every case tried
    (250 runs each; 200 and 1000 samples that flip with AR(1) 0, .5, .9). McNemar's test knows only
    noise that differs between samples; noise common to all is left to the noise rule.
    Power on the curve .1 + .6 (1 - exp(-t / 30)), 1000 samples, noise 0.6 points, six evaluations
    lowered by 5, 7, 10 points: 52, 97, 100 % with `correct`, 0, 1, 76 % with `n` alone.

    The trough is the lowest of several and the ceiling the highest: the mean depth is too large by
    2.3 s on a flat curve, 1.5 s on a saturating one, 0 on a rising one (10 points, s = 1 point).
    There, recovery is more than one evaluation off in 22, 2 and 0 % of 300 dips, onset in 4, 0, 0.

    Returns one row a dip: onset, trough (steps), recovery (step, NaN when the run ends first),
    depth (ceiling - trough), relative_depth (depth / (ceiling - chance)), area (below the ceiling,
    accuracy x steps), p_value, severity: "benign" returns to the trend, "lingering" returns below
    it or settles within half the depth, "censored" when the run ends before. Whether a dip is a
    restart or the end of learning needs other signals and is not decided here. `attrs` holds
    noise, threshold and left_out (evaluations without accuracy). Fewer than 6 evaluations give no
    rows. Raises ValueError for steps that do not increase, accuracies outside 0..1, `correct` of
    another shape or another accuracy.
    """
    steps, acc = checked_series(step, accuracy, "accuracy")
    _check_options(acc, steps, min_depth, k, alpha, chance)
    bits = None if correct is None else _checked_bits(correct, acc)
    counts = None if n is None else _checked_counts(n, acc, bits)
    seen = ~np.isnan(acc)
    steps, acc = steps[seen], acc[seen]
    bits = None if bits is None else bits[seen]
    counts = None if counts is None else counts[seen]

    ceiling = np.fmax.accumulate(trailing_median(acc, MEDIAN_OF))
    noise, threshold = _noise_and_threshold(acc, ceiling - acc, min_depth, k)
    spans = _spans(acc, ceiling, threshold) if acc.size >= SHORTEST else []
    p_values = _holm([_p_value(span, acc, counts, bits) for span in spans], acc.size)
    kept = [(s, p) for s, p in zip(spans, p_values, strict=True) if not p > alpha]
    rows = [_row(span, p, steps, acc, threshold, chance) for span, p in kept]
    frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    frame.attrs = {"noise": noise, "threshold": threshold, "left_out": int(np.sum(~seen))}
    return frame


_COLUMNS = {
    "onset": "int64",
    "trough": "int64",
    "recovery": "float64",
    "depth": "float64",
    "relative_depth": "float64",
    "area": "float64",
    "p_value": "float64",
    "severity": "object",
}


def _check_options(
    acc: FloatArray,
    steps: IntArray,
    min_depth: float,
    k: float | None,
    alpha: float,
    chance: float,
) -> None:
    outside = np.flatnonzero((acc < 0) | (acc > 1))
    if outside.size:
        i = int(outside[0])
        raise ValueError(
            f"accuracy must be a fraction in 0..1 or NaN, got {acc[i]} at step {steps[i]}"
        )
    if not min_depth > 0:
        raise ValueError(f"min_depth must be above 0 (a fraction), got {min_depth}")
    if k is not None and not k > 0:
        raise ValueError(f"k must be above 0, got {k}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if not 0 <= chance < 1:
        raise ValueError(f"chance must be in 0..1, 1 excluded, got {chance}")


def _checked_bits(correct: ArrayLike, acc: FloatArray) -> BoolArray:
    bits = np.asarray(correct)
    if bits.dtype != np.bool_ or bits.ndim != 2 or bits.shape[0] != acc.size or not bits.shape[1]:
        raise ValueError(
            f"correct must be bool of shape [{acc.size} evaluations, samples], "
            f"got {bits.dtype} of shape {bits.shape}"
        )
    share = bits.mean(axis=1)
    # Less than one sample apart is rounding; more is another evaluation's row.
    wrong = np.flatnonzero(np.abs(share - acc) > 0.5 / bits.shape[1])
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"correct[{i}] holds {share[i]:.4f} but accuracy[{i}] is {acc[i]:.4f}")
    return bits


def _checked_counts(n: ArrayLike, acc: FloatArray, bits: BoolArray | None) -> IntArray:
    given = np.asarray(n)
    if given.dtype.kind not in "iu" or given.shape not in ((), acc.shape) or np.any(given < 1):
        raise ValueError(f"n must be a positive integer or [{acc.size}] of them, got {n!r}")
    if bits is not None and np.any(given != bits.shape[1]):
        raise ValueError(f"n must equal the samples in correct, {bits.shape[1]}, got {n!r}")
    return np.broadcast_to(given, acc.shape).astype(np.int64)


def _noise_and_threshold(
    acc: FloatArray, depth: FloatArray, min_depth: float, k: float | None
) -> tuple[float, float]:
    """Alternate between flagging and measuring the noise of the rest until the flags stay."""
    # Only pairs are left out: without every lone low value healthy noise would look too small.
    # The first guess must not rest on `noise_scale`, whose windows wide or frequent dips fill:
    # the bar would rise with the dips that it is to find. Differences of neighbours see edges only.
    noise, threshold = difference_scale(acc), min_depth
    flagged = _paired(depth >= max(min_depth, 4 * noise))
    for _ in range(10):  # settles in 2 or 3 rounds; the bound is against a two-cycle
        noise, autocorrelation = noise_scale(acc[~flagged])
        longer = math.log10(max(acc.size / 100, 1.0))
        factor = k if k is not None else (5.0 if autocorrelation > 0.1 else 4.0) + longer
        threshold = max(min_depth, factor * noise)
        now = _paired(depth >= threshold)
        if np.array_equal(now, flagged):
            break
        flagged = now
    return noise, threshold


def _paired(flags: BoolArray) -> BoolArray:
    """True where the flag and that of a neighbour are set."""
    paired = np.zeros_like(flags)
    paired[1:] |= flags[1:] & flags[:-1]
    paired[:-1] |= flags[1:] & flags[:-1]
    return paired


def _spans(acc: FloatArray, ceiling: FloatArray, threshold: float) -> list[_Span]:
    depth = ceiling - acc  # NaN, and so never flagged, before the first ceiling
    flagged, near = depth >= threshold, depth <= threshold / 2
    spans: list[_Span] = []
    free_from = 0
    for start in np.flatnonzero(flagged[:-1] & flagged[1:]):
        if start < free_from:
            continue
        level = float(ceiling[start])
        before = np.flatnonzero(near[free_from:start])
        onset = free_from + int(before[-1]) if before.size else max(int(start) - 1, 0)
        back = level - acc[start:] <= threshold / 2
        twice = np.flatnonzero(back[:-1] & back[1:])
        recovery = int(start) + int(twice[0]) if twice.size else None
        trough = int(start) + int(np.argmin(acc[start:recovery]))
        spans.append(_Span(onset, trough, recovery, level))
        if recovery is None:
            break
        free_from = recovery
    return spans


def _p_value(
    span: _Span, acc: FloatArray, counts: IntArray | None, bits: BoolArray | None
) -> float:
    first = max(0, span.onset - MEDIAN_OF + 1)
    before = acc[first : span.onset + 1]
    reference = first + int(np.argmin(np.abs(before - np.median(before))))
    if bits is not None:
        lost = int(np.sum(bits[reference] & ~bits[span.trough]))
        gained = int(np.sum(~bits[reference] & bits[span.trough]))
        return float(stats.binom.sf(lost - 1, lost + gained, 0.5))
    if counts is not None:
        size = counts[[reference, span.trough]]
        right = np.rint(acc[[reference, span.trough]] * size).astype(np.int64)
        return float(stats.hypergeom.sf(right[0] - 1, size.sum(), right.sum(), size[0]))
    return math.nan


def _holm(p_values: list[float], tests: int) -> list[float]:
    """Holm's step-down over `tests` evaluations, of which those without a dip count as p = 1."""
    p = np.array(p_values)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    scaled = np.minimum(1.0, (tests - np.arange(p.size)) * p[order])
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(x) for x in adjusted]


def _row(
    span: _Span, p: float, steps: IntArray, acc: FloatArray, threshold: float, chance: float
) -> dict[str, object]:
    stop = acc.size if span.recovery is None else span.recovery + 1
    below = np.clip(span.ceiling - acc[span.onset : stop], 0.0, None)
    depth = span.ceiling - float(acc[span.trough])
    above_chance = span.ceiling - chance
    return {
        "onset": steps[span.onset],
        "trough": steps[span.trough],
        "recovery": math.nan if span.recovery is None else steps[span.recovery],
        "depth": depth,
        "relative_depth": depth / above_chance if above_chance > 0 else math.nan,
        "area": float(integrate.trapezoid(below, steps[span.onset : stop])),
        "p_value": p,
        "severity": _severity(span, steps, acc, depth, threshold / 2),
    }


def _severity(span: _Span, steps: IntArray, acc: FloatArray, depth: float, tolerance: float) -> str:
    if span.recovery is None:
        settled = acc[span.trough + 1 :][-MEDIAN_OF:]
        partly = settled.size == MEDIAN_OF and span.ceiling - np.median(settled) <= depth / 2
        return "lingering" if partly else "censored"
    before = slice(max(0, span.onset - 9), span.onset + 1)
    after = slice(span.recovery, span.recovery + 10)
    # The smaller of both slopes: accuracy curves flatten, and the earlier one alone would promise
    # more than an undisturbed run reaches.
    slope = max(0.0, min(_slope(steps[before], acc[before]), _slope(steps[after], acc[after])))
    last, first = before.stop - MEDIAN_OF, after.start + MEDIAN_OF
    old, new = slice(max(0, last), before.stop), slice(after.start, first)
    elapsed = np.median(steps[new]) - np.median(steps[old])
    missing = np.median(acc[old]) + slope * elapsed - np.median(acc[new])
    return "lingering" if missing > tolerance else "benign"


def _slope(steps: IntArray, acc: FloatArray) -> float:
    return float(stats.theilslopes(acc, steps).slope) if acc.size >= 3 else 0.0
