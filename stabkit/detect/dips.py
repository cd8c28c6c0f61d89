"""Dips: passing losses of an accuracy that is evaluated often on a fixed set of samples."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.dip_rows import COLUMNS, dip_row
from stabkit.detect.dip_search import SHORT, Span, find_spans, lost_for_good, strength
from stabkit.detect.dip_tail import dips_that_stand_out
from stabkit.detect.dip_windows import weights_of, width_count
from stabkit.detect.frames import rows_frame
from stabkit.detect.local_noise import flip_variances
from stabkit.detect.robust import (
    BoolArray,
    FloatArray,
    IntArray,
    check_accuracy,
    checked_series,
    samples_told,
)
from stabkit.detect.significance import holm, p_value

MIN_DEPTH, MIN_FALL, ALPHA = 0.01, 2.5, 0.01
FEWEST_SAMPLES = 2  # where accuracies are shares of few samples, a dip is at least so many deep
SHORTEST = 8  # evaluations: three before, two that are low, three after


def find_dips(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    *,
    min_depth: float = MIN_DEPTH,
    threshold: float | None = None,
    min_fall: float = MIN_FALL,
    alpha: float = ALPHA,
    chance: float = 0.0,
    between: float | None = None,
) -> pd.DataFrame:
    """Find stretches in which the accuracy falls below the level around it, beyond noise.

    accuracy [evals] in 0..1 (NaN: left out); n: samples evaluated, one number or [evals];
    correct: bool [evals, n], the same samples in the same order at every evaluation.

    Windows of growing width, from two evaluations to half of the run, and all that reach its end,
    are compared with the 3 to 12 evaluations before and after, against the trend over steps
    (`stabkit.detect.dip_windows`). A window is a dip if it passes these rules:

    1. Depth: its mean lies at least `min_depth` and `threshold` standard errors below its
       reference. Where noise is slow (AR .7 and more), 3 are enough if the accuracy falls by
       `threshold` - 0.25.
    2. Fall: the accuracy falls into it at once, by `min_fall` standard errors. A stall of a rising
       curve does not count. It takes 1.5 times as many if the run ends low. It takes twice as many
       if the accuracy then leaps above the reference by more than it had lain below, as where a
       learning rate drops.
    3. Length: two evaluations in a row are low, and no single one carries its depth.
    4. Noise: it does not make the dip likely. Judged by the largest falls outside of dips and
       possible dips, at most .1 such dips are expected in all windows (`stabkit.detect.dip_tail`).
       A given `threshold` replaces this rule.
    5. Significance: `p_value` is at most `alpha`, if there is one (see below).

    The standard error is that of AR(1) noise, whose scale is learned for each evaluation from the
    answers that flip and the residuals outside of the windows that stand out
    (`stabkit.detect.local_noise`), and is at least a fifth of `min_depth`. Accuracies that are
    shares of up to 200 samples (or whole percents) tell their number where it is not given: then
    the noise is at least that of rounding to one sample, and a dip at least two samples deep. One
    AR(1) coefficient, from .5 to .8, serves the whole run. `threshold` defaults to 5; 6 for fewer
    than 60 evaluations, whose noise is learned around the nearest learning curve; more for over 100
    evaluations, and without `correct` for slow noise and short runs (`dip_search.dip_bar`). The
    default avoids false alarms; `threshold=3` finds more dips. The windows that stand out most are
    taken first; windows that overlap them are dropped. The noise of the first evaluations is large,
    so that about half of the dips among the first six are missed.

    In a series of fewer than 30 evaluations an end of three or more that lies far below all of the
    three before is a dip too, without the rules above (`dip_search.lost_for_good`; z and fall are
    NaN).

    Significance: with `correct`, the answers of each sample inside the window are compared with its
    own answers before and after. With `n` alone, each evaluation is treated as a new draw of
    samples, which misses more. p_value is Holm-corrected over all windows and must be at most
    `alpha`. With neither it is NaN and the rules above decide alone. The paired test knows what
    differs between samples; only these rules judge noise that all samples share. Measured rates of
    false alarms, power and errors of onset: docs/error-rates.md.

    Returns one row per dip:

    - onset: last step before the dip
    - trough: step of the lowest evaluation
    - recovery: step of the first of two evaluations within noise of the reference; NaN if the run
      ends before
    - depth: reference - accuracy at the trough (the lowest of several evaluations, so about one
      noise scale too large)
    - relative_depth: depth / (level at onset - chance)
    - area: accuracy x steps below the level at onset
    - half_recovery: steps from the trough to half of the depth
    - permanent_loss: how far the level after the dip lies below the trend before it
    - similarity: correlation over samples of the answers five evaluations before and after
    - z, fall: depth of the window and fall into it, in standard errors
    - p_value
    - severity: "benign" (returns to the trend), "lingering" (returns below it, or settles within
      half the depth), "restart" (the answers after it agree with those before no better than
      `between`, the `answer_similarity` of runs with different seeds), "terminal" (the run ends
      with less than a quarter of its accuracy above chance), "censored" (the run ends before any of
      this is seen)

    `attrs` holds noise (the median over the evaluations), ar, threshold and left_out (number of
    evaluations without accuracy). Fewer than 8 evaluations give no rows. While a run trains,
    `stabkit.detect.online_dips` makes this search again and again, and tells what is confirmed.

    Raises ValueError for steps that do not increase, accuracies outside 0..1, and `correct` of
    another shape or another accuracy.
    """
    dips, _, attrs = _search(
        step, accuracy, n, correct, min_depth, threshold, min_fall, alpha, chance, between
    )
    frame = rows_frame(dips, COLUMNS)
    frame.attrs = attrs
    return frame


def search_dips(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    *,
    chance: float = 0.0,
) -> pd.DataFrame:
    """Find dips as `find_dips` does, and possible dips in the same search.

    A possible dip reaches four fifths of the bar or more, and passes all other rules but that of
    the largest falls. Some healthy runs have one (docs/error-rates.md), so it changes no verdict.
    The additional column `possible` is true for it. Raises what `find_dips` raises.
    """
    dips, possible, attrs = _search(
        step, accuracy, n, correct, MIN_DEPTH, None, MIN_FALL, ALPHA, chance, between=None
    )
    rows = [*((*row, False) for row in dips), *((*row, True) for row in possible)]
    frame = rows_frame(rows, COLUMNS | {"possible": "bool"})
    frame.attrs = attrs
    return frame


Row = tuple[object, ...]  # the values of COLUMNS


def _search(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None,
    correct: ArrayLike | None,
    min_depth: float,
    threshold: float | None,
    min_fall: float,
    alpha: float,
    chance: float,
    between: float | None,
) -> tuple[list[Row], list[Row], dict[str, float]]:
    """Return the rows of dips and of possible dips, and the `attrs` of `find_dips`."""
    steps, acc = checked_series(step, accuracy, "accuracy")
    _check_options(acc, steps, min_depth, threshold, min_fall, alpha, chance)
    bits = None if correct is None else _checked_bits(correct, acc)
    counts = None if n is None else _checked_counts(n, acc, bits)
    seen = ~np.isnan(acc)
    steps, acc = steps[seen], acc[seen]
    bits = None if bits is None else bits[seen]
    counts = None if counts is None else counts[seen]

    spans: list[Span] = []
    noise, ar, bar = np.zeros(acc.size), 0.0, 0.0
    # From the first step on: sums of steps as large as a time in nanoseconds would be rounded.
    time = (steps - steps[:1]).astype(np.float64)
    if acc.size >= SHORTEST:
        variances = None if bits is None else flip_variances(bits)
        samples = samples_told(acc) if counts is None and bits is None else 0
        min_depth = max(min_depth, FEWEST_SAMPLES / samples) if samples else min_depth
        spans, noise, ar, bar = find_spans(acc, time, variances, min_depth, threshold, min_fall)

    # The search looked at every window, so corrections count every window.
    windows = acc.size * width_count(acc.size)
    clear = [strength(span.z, span.fall, ar, bar) >= 1 for span in spans]
    if any(clear) and threshold is None:
        unlikely = dips_that_stand_out(spans, acc, noise, ar, windows)
        clear = [strong and rare for strong, rare in zip(clear, unlikely, strict=True)]
    if SHORTEST <= acc.size < SHORT and not any(clear):
        lost = lost_for_good(acc, time, chance)
        if lost is not None and lost.line[lost.trough] - acc[lost.trough] >= min_depth:
            spans, clear = [lost], [True]

    def rows(some: list[Span]) -> list[Row]:
        p_values = [p_value(weights_of(time, s.start, s.stop), acc, counts, bits) for s in some]
        corrected = holm(p_values, windows)
        # `not p > alpha` instead of `p <= alpha` keeps NaN: nothing is known of the samples.
        kept = [(s, p) for s, p in zip(some, corrected, strict=True) if not p > alpha]
        found = (dip_row(s, p, steps, acc, noise, chance, bits, between) for s, p in kept)
        return [tuple(row[name] for name in COLUMNS) for row in found]

    dips, possible = (
        [span for span, passed in zip(spans, clear, strict=True) if passed == asked]
        for asked in (True, False)
    )
    typical = float(np.median(noise)) if noise.size else 0.0
    attrs = {"noise": typical, "ar": ar, "threshold": bar, "left_out": int(np.sum(~seen))}
    return rows(dips), rows(possible), attrs


def _check_options(
    acc: FloatArray,
    steps: IntArray,
    min_depth: float,
    threshold: float | None,
    min_fall: float,
    alpha: float,
    chance: float,
) -> None:
    check_accuracy(steps, acc)
    if not min_depth > 0:
        raise ValueError(f"min_depth must be above 0 (a fraction), got {min_depth}")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    if not min_fall >= 0:
        raise ValueError(f"min_fall must be 0 or above, got {min_fall}")
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
