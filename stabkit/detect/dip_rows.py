"""The row of a dip that was found: its times, depth, losses and severity."""

import math

import numpy as np

from stabkit.detect.dip_search import Span
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.significance import answer_similarity

MEDIAN_OF = 5  # evaluations whose median is a level: two outliers do not move it
TREND_OVER = 10  # evaluations before and after a dip that give the slope of the curve
FEWEST_AFTER = 3  # evaluations after a dip before its permanent loss is judged
TERMINAL = 0.25  # share of the accuracy above chance at or below which a run counts as lost

COLUMNS = {
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
    "fall": "float64",
    "p_value": "float64",
    "severity": "object",
}


def dip_row(
    span: Span,
    p: float,
    steps: IntArray,
    acc: FloatArray,
    noise: FloatArray,
    chance: float,
    bits: BoolArray | None,
    between: float | None,
) -> dict[str, object]:
    """Return the columns of one dip, as `find_dips` describes them."""
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
    severity = _severity(span, acc, depth, loss, float(noise[span.onset]), chance)
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
        "fall": span.fall,
        "p_value": p,
        "severity": severity,
    }


def _half_recovery(span: Span, steps: IntArray, acc: FloatArray, depth: float) -> float:
    """Return the steps from the trough to the first of two evaluations with half the depth back."""
    back = (span.line - acc)[span.trough + 1 :] <= depth / 2
    twice = np.flatnonzero(back[:-1] & back[1:])
    return float(steps[span.trough + 1 + twice[0]] - steps[span.trough]) if twice.size else math.nan


def _permanent_loss(span: Span, steps: IntArray, acc: FloatArray) -> float:
    """Return how far the level after a dip lies below the trend before it; NaN if not seen yet."""
    if span.recovery is None or acc.size - span.recovery < FEWEST_AFTER:
        return math.nan
    before = slice(max(0, span.onset + 1 - TREND_OVER), span.onset + 1)
    after = slice(span.recovery, span.recovery + TREND_OVER)
    # The smaller of both slopes: accuracy curves flatten, and the slope before the dip alone would
    # predict more than an undisturbed run reaches. Never below 0: a run is not expected to fall.
    slope = max(0.0, min(_slope(steps[before], acc[before]), _slope(steps[after], acc[after])))
    old = slice(max(0, before.stop - MEDIAN_OF), before.stop)
    new = slice(after.start, after.start + MEDIAN_OF)
    elapsed = np.median(steps[new]) - np.median(steps[old])
    return float(np.median(acc[old]) + slope * elapsed - np.median(acc[new]))


def _severity(
    span: Span, acc: FloatArray, depth: float, loss: float, noise: float, chance: float
) -> str:
    level = span.line[span.onset]
    if span.recovery is None:
        settled = acc[span.trough :][-MEDIAN_OF:]
        if np.median(settled) - chance <= TERMINAL * (level - chance):
            return "terminal"
        partly = settled.size == MEDIAN_OF and level - np.median(settled) <= depth / 2
        return "lingering" if partly else "censored"
    # A loss counts when it is beyond the noise of a difference of two medians (each has a standard
    # error of .54 noise scales, so 2 scales are 2.6 standard errors) and a fair part of the dip.
    return "lingering" if loss > max(2 * noise, depth / 4) else "benign"


def _slope(steps: IntArray, acc: FloatArray) -> float:
    """Return the Theil-Sen slope (median of all pairwise slopes): outliers hardly change it."""
    from scipy import stats  # slow to import, and not needed before the first dip

    return float(stats.theilslopes(acc, steps - steps[0]).slope) if acc.size >= 3 else 0.0


def _area(below: FloatArray, steps: IntArray) -> float:
    from scipy import integrate  # slow to import, and not needed before the first dip

    return float(integrate.trapezoid(below, steps))
