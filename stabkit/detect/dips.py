"""Dips: passing losses of an accuracy that is evaluated often on a fixed set of samples."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.contrasts import (
    SHORTEST_FLANK,
    Windows,
    reference,
    scan,
    weights_of,
    width_count,
)
from stabkit.detect.robust import (
    BoolArray,
    FloatArray,
    IntArray,
    checked_series,
    difference_scale,
    noise_scale,
)
from stabkit.detect.significance import answer_similarity, holm, p_value

SHORTEST = 8  # evaluations: three before, two that are low, three after
PROVISIONAL = 3.0  # the bar for what is kept out of the noise
MEDIAN_OF = 5  # evaluations behind a level
TERMINAL = 0.25  # of the accuracy above chance that a run had: as good as lost


@dataclass(frozen=True)
class _Span:
    """Indices of one dip; `recovery` is None when the run ends first. `line` is its reference."""

    onset: int
    trough: int
    recovery: int | None
    start: int
    stop: int
    z: float
    line: FloatArray


def find_dips(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    *,
    min_depth: float = 0.01,
    threshold: float | None = None,
    min_fall: float = 3.0,
    alpha: float = 0.01,
    chance: float = 0.0,
    between: float | None = None,
) -> pd.DataFrame:
    """Stretches in which the accuracy falls below the level around it, beyond noise and chance.

    accuracy [evals] in 0..1 (NaN: left out); n: samples evaluated, one number or [evals];
    correct: bool [evals, n], the same samples in the same order at every evaluation.

    Every window of two evaluations or more is compared with the evaluations before and after it,
    against the trend (`stabkit.detect.contrasts`). A dip is a window whose mean lies `min_depth`
    and `threshold` standard errors below its reference, into which the accuracy falls at once (a
    stall of a rising curve is none) and of which two evaluations in a row are low. The standard
    error is that of AR(1) noise, its scale and coefficient estimated outside of the windows that
    stand out; `threshold` defaults to 4.5 and more for autocorrelated noise, long runs and where
    the samples are not known (`critical`): few false alarms above all. The best F1 is that of
    `threshold=1.5, min_fall=2, alpha=.05`, which alarms in some 7 % of healthy runs. Windows are
    taken by how far they stand out, none overlapping another.

    Significance: with `correct`, each sample's answers in the window against its own before and
    after it; with `n` alone, as if every evaluation drew other samples, which misses more. p_value
    is Holm-corrected over all windows and must be at most `alpha`; with neither it is NaN and the
    noise decides alone. The paired test knows what differs between samples; noise common to all
    is left to the noise rule. Measured rates of false alarms, power and errors of onset:
    docs/detectors.md.

    Returns one row a dip: onset (last step before it), trough, recovery (steps; first of two
    evaluations within noise of the reference, NaN when the run ends before), depth (reference -
    accuracy at the trough; the lowest of several, so about one noise scale too large),
    relative_depth (depth / (level at onset - chance)), area (below the level at onset, accuracy x
    steps), half_recovery (steps from trough to half of the depth), permanent_loss (how far the
    level after it lies below the trend before it), similarity (correlation over samples of the
    answers five evaluations before and after), z, p_value, severity:

    - "benign": returns to the trend
    - "lingering": returns below it, or settles within half the depth
    - "restart": afterwards the answers agree with those before no better than `between`, the
      similarity of runs that differ in their seed (`answer_similarity`)
    - "terminal": the run ends with less than a quarter of its accuracy above chance
    - "censored": the run ends before any of this is seen

    `attrs` holds noise, ar, threshold and left_out (evaluations without accuracy). Fewer than 8
    evaluations give no rows. The same call after every evaluation is the online detector: after the
    last it has found what one call finds. Raises ValueError for steps that do not increase,
    accuracies outside 0..1, `correct` of another shape or another accuracy.
    """
    steps, acc = checked_series(step, accuracy, "accuracy")
    _check_options(acc, steps, min_depth, threshold, min_fall, alpha, chance)
    bits = None if correct is None else _checked_bits(correct, acc)
    counts = None if n is None else _checked_counts(n, acc, bits)
    seen = ~np.isnan(acc)
    steps, acc = steps[seen], acc[seen]
    bits = None if bits is None else bits[seen]
    counts = None if counts is None else counts[seen]

    spans, noise, ar, bar = (
        _find(acc, min_depth, threshold, min_fall, paired=bits is not None)
        if acc.size >= SHORTEST
        else ([], 0.0, 0.0, 0.0)
    )
    tests = acc.size * width_count(acc.size)
    p_values = holm(
        [p_value(weights_of(acc.size, s.start, s.stop), acc, counts, bits) for s in spans], tests
    )
    kept = [(s, p) for s, p in zip(spans, p_values, strict=True) if not p > alpha]
    rows = [_row(span, p, steps, acc, noise, chance, bits, between) for span, p in kept]
    frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    frame.attrs = {"noise": noise, "ar": ar, "threshold": bar, "left_out": int(np.sum(~seen))}
    return frame


_COLUMNS = {
    "onset": "int64",
    "trough": "int64",
    "recovery": "float64",
    "depth": "float64",
    "relative_depth": "float64",
    "area": "float64",
    "half_recovery": "float64",
    "permanent_loss": "float64",
    "similarity": "float64",
    "z": "float64",
    "p_value": "float64",
    "severity": "object",
}


def _check_options(
    acc: FloatArray,
    steps: IntArray,
    min_depth: float,
    threshold: float | None,
    min_fall: float,
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


def _find(
    acc: FloatArray, min_depth: float, threshold: float | None, min_fall: float, paired: bool
) -> tuple[list[_Span], float, float, float]:
    """Spans in order of time; noise and AR(1) coefficient outside of them; the bar for z."""
    # The first guess of the noise must not rest on `noise_scale`, whose windows wide or frequent
    # dips fill: the bar would rise with the dips that it is to find. Differences of neighbours see
    # edges only, but are too small where noise is autocorrelated: hence a high bar for them.
    lowest = PROVISIONAL if threshold is None else min(PROVISIONAL, threshold)
    floor = min_depth / 5  # below this a dip of min_depth is beyond every bar anyway
    guess = max(difference_scale(acc), floor)
    spans = _spans(acc, scan(acc, 0.0), guess, 9.0, min_depth, min_fall)
    for _ in range(5):  # settles in 2 or 3 rounds; the bound is against a two-cycle
        outside = np.ones(acc.size, dtype=bool)
        for span in spans:
            outside[span.onset + 1 : span.recovery] = False
        noise, ar = noise_scale(acc[outside])
        # What might be a dip is kept out of the noise as well: one just below the bar raises it.
        windows = scan(acc, ar)
        now = _spans(acc, windows, max(noise, floor), lowest, min_depth, min_fall)
        same = [(s.start, s.stop) for s in now] == [(s.start, s.stop) for s in spans]
        spans = now
        if same:
            break
    bar = threshold if threshold is not None else critical(acc.size, ar, paired)
    return [span for span in spans if span.z >= bar], noise, ar, bar


def critical(evals: int, ar: float, paired: bool) -> float:
    """The z that the largest window of a healthy run passes in at most about 0.3 % of runs.

    Where the samples are known the paired test stands beside it, which sees all noise of theirs.
    Without them only `ar` tells of slow noise, and is itself estimated.
    """
    longer = 0.3 * max(0.0, math.log10(evals / 100))
    if paired:
        return 4.6 + longer + 1.2 * ar
    return 4.5 + longer + 2.0 * ar + 20 / evals  # few evaluations: a rough estimate of the noise


def _spans(
    acc: FloatArray, windows: Windows, noise: float, bar: float, min_depth: float, min_fall: float
) -> list[_Span]:
    """Greedy: the window that stands out most, then the most of those that do not overlap it."""
    z = windows.z / noise
    possible = np.flatnonzero(
        (z >= bar) & (windows.depth >= min_depth) & (windows.fall >= min_fall * noise)
    )
    free = np.ones(acc.size, dtype=bool)
    spans: list[_Span] = []
    for w in possible[np.argsort(-z[possible], kind="stable")]:
        start, stop = int(windows.start[w]), int(windows.stop[w])
        if not free[start:stop].all():
            continue
        span = _span(acc, start, stop, float(z[w]), noise, min_depth)
        if span is not None and free[span.onset + 1 : span.recovery].all():
            free[span.onset + 1 : span.recovery] = False
            spans.append(span)
    return sorted(spans, key=lambda span: span.onset)


def _span(
    acc: FloatArray, start: int, stop: int, z: float, noise: float, min_depth: float
) -> _Span | None:
    """From a window to the evaluations that are low; None when no two in a row are."""
    tolerance = max(min_depth / 2, 1.5 * noise)
    first, last = start, stop
    for _ in range(2):  # the window may be narrower than the dip, whose rest then lowers the line
        line = reference(acc, first, last)
        low = line - acc > tolerance
        inside = np.flatnonzero(low[first:last])
        if not inside.size:
            return None
        first += int(inside[0])
        while first > SHORTEST_FLANK and low[first - 1]:
            first -= 1
        trough = first + int(np.argmin((acc - line)[first:last]))
        back = np.flatnonzero(~low[trough + 1 : -1] & ~low[trough + 2 :])
        last = trough + 1 + int(back[0]) if back.size else acc.size
    deep = line - acc > (line[trough] - acc[trough]) / 4  # a lone outlier has no neighbour that is
    pairs = low[first : last - 1] & low[first + 1 : last] & deep[first : last - 1]
    if not np.any(pairs & deep[first + 1 : last]):
        return None
    recovery = last if last < acc.size else None
    return _Span(first - 1, trough, recovery, start, stop, z, line)


def _row(
    span: _Span,
    p: float,
    steps: IntArray,
    acc: FloatArray,
    noise: float,
    chance: float,
    bits: BoolArray | None,
    between: float | None,
) -> dict[str, object]:
    stop = acc.size if span.recovery is None else span.recovery + 1
    level = float(span.line[span.onset])
    below = np.clip(level - acc[span.onset : stop], 0.0, None)
    depth = float(span.line[span.trough] - acc[span.trough])
    above_chance = level - chance
    loss = _permanent_loss(span, steps, acc)
    similarity = math.nan
    if bits is not None and span.recovery is not None:
        before = bits[max(0, span.onset + 1 - MEDIAN_OF) : span.onset + 1]
        similarity = answer_similarity(before, bits[span.recovery :][:MEDIAN_OF])
    severity = _severity(span, acc, depth, loss, noise, chance)
    if between is not None and similarity <= between:
        severity = "restart"
    return {
        "onset": steps[span.onset],
        "trough": steps[span.trough],
        "recovery": math.nan if span.recovery is None else steps[span.recovery],
        "depth": depth,
        "relative_depth": depth / above_chance if above_chance > 0 else math.nan,
        "area": _area(below, steps[span.onset : stop]),
        "half_recovery": _half_recovery(span, steps, acc, depth),
        "permanent_loss": loss,
        "similarity": similarity,
        "z": span.z,
        "p_value": p,
        "severity": severity,
    }


def _half_recovery(span: _Span, steps: IntArray, acc: FloatArray, depth: float) -> float:
    """Steps from the trough to the first of two evaluations that have half of the depth back."""
    back = (span.line - acc)[span.trough + 1 :] <= depth / 2
    twice = np.flatnonzero(back[:-1] & back[1:])
    return float(steps[span.trough + 1 + twice[0]] - steps[span.trough]) if twice.size else math.nan


def _permanent_loss(span: _Span, steps: IntArray, acc: FloatArray) -> float:
    """How far the level after a dip lies below the trend before it; NaN while that is not seen."""
    if span.recovery is None or acc.size - span.recovery < 3:
        return math.nan
    before = slice(max(0, span.onset - 9), span.onset + 1)
    after = slice(span.recovery, span.recovery + 10)
    # The smaller of both slopes: accuracy curves flatten, and the earlier one alone would promise
    # more than an undisturbed run reaches.
    slope = max(0.0, min(_slope(steps[before], acc[before]), _slope(steps[after], acc[after])))
    old = slice(max(0, before.stop - MEDIAN_OF), before.stop)
    new = slice(after.start, after.start + MEDIAN_OF)
    elapsed = np.median(steps[new]) - np.median(steps[old])
    return float(np.median(acc[old]) + slope * elapsed - np.median(acc[new]))


def _severity(
    span: _Span, acc: FloatArray, depth: float, loss: float, noise: float, chance: float
) -> str:
    level = span.line[span.onset]
    if span.recovery is None:
        settled = acc[span.trough :][-MEDIAN_OF:]
        if np.median(settled) - chance <= TERMINAL * (level - chance):
            return "terminal"
        partly = settled.size == MEDIAN_OF and level - np.median(settled) <= depth / 2
        return "lingering" if partly else "censored"
    return "lingering" if loss > max(2 * noise, depth / 4) else "benign"


def _slope(steps: IntArray, acc: FloatArray) -> float:
    from scipy import stats  # slow to import, and no need before the first dip

    return float(stats.theilslopes(acc, steps).slope) if acc.size >= 3 else 0.0


def _area(below: FloatArray, steps: IntArray) -> float:
    from scipy import integrate  # slow to import, and no need before the first dip

    return float(integrate.trapezoid(below, steps))
