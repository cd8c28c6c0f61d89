"""The search for dips: which windows lie too low, and where a dip begins and ends."""

import math
from dataclasses import dataclass

import numpy as np

from stabkit.detect.dip_windows import LONGEST_FLANK, SHORTEST_FLANK, reference, scan
from stabkit.detect.learning_curve import learning_curve
from stabkit.detect.local_noise import LEAST_AR, difference_noise, least_noise, noise_outside
from stabkit.detect.robust import FloatArray

# How many times `min_fall` the fall must be where the accuracy does not return to its level: it
# ends low, or leaps above. A slow sag may have ended in the leap of a learning-rate drop.
ENDS_LOW, LEAPS = 1.5, 2.0
# Share of a window's depth that must be left without its lowest evaluation. A single outlier that
# decays over AR(1) noise of .5 leaves .6; a dip of even a few evaluations leaves more.
WITHOUT_LOWEST = 0.7
PROVISIONAL = 3.0  # z: a window above it may be a dip, so its values do not count as noise
# Where noise is slow, every mean is uncertain and with it the depth of any dip, but a sudden change
# is as clear as ever. There a window may pass by its fall, whose bar is a little lower.
SLOW, SHARP_IS_LOWER = 0.7, 0.25  # AR(1) coefficient; standard errors
# Evaluations: fewer may not tell their noise from a fall to the end, or to half of the best.
SHORT, FEW = 30, 14
LOST, TIMES_OTHERS = 0.15, 2.0  # such a fall: share of the best accuracy; times the other falls
POSSIBLE = 0.8  # share of the bar: what reaches it, but not the bar, is a possible dip
# In a series of fewer evaluations the bend of the learning curve looks like noise, and is taken out
# before the noise is learned. What the curve does not follow remains, so the bar is higher.
BENDS, BENT = 60, 1.0
FIRST_BAR = 9.0  # z in the first round, whose noise estimate is too small for slow noise


@dataclass(frozen=True)
class Span:
    """Indices of one dip in the accuracy.

    `onset` is the last evaluation before it, `recovery` the first after it (None when the run ends
    first). `start` and `stop` bound the window that was found, `z` is its depth and `fall` the fall
    into it, both in standard errors; `line` [evals] is its reference.
    """

    onset: int
    trough: int
    recovery: int | None
    start: int
    stop: int
    z: float
    fall: float
    line: FloatArray


def find_spans(
    acc: FloatArray,
    time: FloatArray,
    variances: FloatArray | None,
    min_depth: float,
    threshold: float | None,
    min_fall: float,
) -> tuple[list[Span], FloatArray, float, float]:
    """Return dips and possible dips in time order, the noise [evals] and its AR(1), and the bar.

    time [evals]: steps; variances [evals]: see `local_noise`.
    """
    # Noise and dips depend on each other: dips count as noise unless they are known, and are known
    # by the noise. So both are found in turn, beginning with a noise that dips hardly change.
    #
    # The first guess must not use `local_noise`: wide or frequent dips fill its windows, and the
    # bar would rise with the dips that it should find. Differences of neighbors see only the edges
    # of a dip, but they are too small where noise is autocorrelated. Hence the high first bar.
    lowest = PROVISIONAL if threshold is None else min(PROVISIONAL, threshold)
    floor = least_noise(acc, variances, min_depth)
    bend = learning_curve(acc, time) if acc.size < BENDS else 0.0
    noise, ar = np.maximum(difference_noise(acc - bend, variances), floor), 0.0
    spans = _select(acc, time, noise, ar, FIRST_BAR, min_depth, min_fall)
    for _ in range(5):  # two or three rounds settle it; the bound stops a two-cycle
        outside = np.ones(acc.size, dtype=bool)
        for span in spans:
            outside[span.onset + 1 : span.recovery] = False
        noise, ar = noise_outside(acc - bend, variances, outside)
        noise = np.maximum(noise, floor)
        # Possible dips are kept out of the noise too: one just below the bar would raise the noise.
        now = _select(acc, time, noise, ar, lowest, min_depth, min_fall)
        same = [(s.start, s.stop) for s in now] == [(s.start, s.stop) for s in spans]
        spans = now
        if same:
            break
    bar = threshold if threshold is not None else dip_bar(acc.size, ar, variances is not None)
    kept = [span for span in spans if strength(span.z, span.fall, ar, bar) >= POSSIBLE]
    return kept, noise, ar, bar


def lost_for_good(acc: FloatArray, time: FloatArray, chance: float) -> Span | None:
    """Return the end of a short series if the accuracy falls at once and stays low.

    Such a fall fills so much of the series that its noise is not known, and no window stands out
    from it. The end is low from an evaluation on if all of it lies below the three before, by
    `LOST` of the best accuracy above chance, and by twice the largest other fall from one
    evaluation to the next. In a series of fewer than `FEW` evaluations an end below half of the
    best accuracy is low as well. `z` and `fall` are NaN. None if fewer than three evaluations are
    so low, or fewer than three come before, or none was above chance.
    """
    best = float(acc.max()) - chance
    if best <= 0:
        return None
    begin = _first_low(acc, LOST * best)
    if begin is None and acc.size < FEW:
        begin = int(np.flatnonzero(acc - chance >= best / 2)[-1]) + 1
    if begin is None or begin < SHORTEST_FLANK or acc.size - begin < SHORTEST_FLANK:
        return None
    line = reference(acc, time, begin, acc.size)
    trough = begin + int(np.argmin((acc - line)[begin:]))
    return Span(begin - 1, trough, None, begin, acc.size, math.nan, math.nan, line)


def _first_low(acc: FloatArray, least: float) -> int | None:
    """Return the index from which all values lie below the three before, by `least` or more."""
    falls = -np.diff(acc)
    gaps = {
        at: float(acc[at - SHORTEST_FLANK : at].min() - acc[at:].max())
        for at in range(SHORTEST_FLANK, acc.size - SHORTEST_FLANK + 1)
    }
    at = max(gaps, key=lambda at: gaps[at])
    others = float(np.delete(falls, at - 1).max())
    return at if gaps[at] >= max(least, TIMES_OTHERS * others) else None


def strength(z: float, fall: float, ar: float, bar: float) -> float:
    """Return how clearly a window is a dip: 1 is just at the bar.

    It is judged by its depth and, where noise is slow, by its fall, whichever is clearer. Only
    windows that pass PROVISIONAL are asked.
    """
    return (max(z, fall + SHARP_IS_LOWER) if ar >= SLOW else z) / bar


def dip_bar(evals: int, ar: float, paired: bool) -> float:
    """Return the z that the largest window of a healthy run should pass in some 0.5 % of runs.

    The numbers were set on the healthy scenarios of `stabkit.detect.simulate`, with other seeds
    than benchmarks/calibration measures with. More evaluations are more windows, and the largest of
    more z is larger.

    `paired`: the answer of each sample is known. Then the paired test has to pass too, and it sees
    all noise between samples. Otherwise slow noise (a larger `ar`) needs a higher bar, and so do
    short runs, whose noise is estimated from few evaluations. In fewer than `BENDS` evaluations the
    bar is higher by `BENT`, since no curve that is taken out follows every bend.
    """
    longer = 0.3 * max(0.0, math.log10(evals / 100))
    bent = BENT if evals < BENDS else 0.0
    return 5.0 + longer + bent + (0.0 if paired else 2.0 * (ar - LEAST_AR) + 20 / evals)


def _select(
    acc: FloatArray,
    time: FloatArray,
    noise: FloatArray,
    ar: float,
    bar: float,
    min_depth: float,
    min_fall: float,
) -> list[Span]:
    """Take the window with the largest z, then the largest that overlaps none taken, and so on."""
    windows = scan(acc, time, noise, ar)
    z = windows.z
    possible = np.flatnonzero(
        (z >= bar) & (windows.depth >= min_depth) & (windows.fall >= min_fall)
    )
    free = np.ones(acc.size, dtype=bool)
    spans: list[Span] = []
    for w in possible[np.argsort(-z[possible], kind="stable")]:
        start, stop = int(windows.start[w]), int(windows.stop[w])
        if not free[start:stop].all() or _is_outlier(acc[start:stop], float(windows.depth[w])):
            continue
        found = (start, stop, float(z[w]), float(windows.fall[w]))
        span = _delimit(acc, time, *found, noise, min_depth)
        if span is None or not free[span.onset + 1 : span.recovery].all():
            continue
        if span.fall >= min_fall * _sharpness(acc, span):
            free[span.onset + 1 : span.recovery] = False
            spans.append(span)
    return sorted(spans, key=lambda span: span.onset)


def _is_outlier(inside: FloatArray, depth: float) -> bool:
    """Return whether one evaluation carries the depth of a window."""
    lowest = (float(inside.mean()) - float(inside.min())) / (inside.size - 1)
    return depth - lowest < WITHOUT_LOWEST * depth


def _sharpness(acc: FloatArray, span: Span) -> float:
    """Return how many times `min_fall` the fall of a dip must be, given how the dip ends."""
    if span.recovery is None:
        return ENDS_LOW
    low = slice(span.onset + 1, span.recovery)
    width = min(max(span.recovery - span.onset - 1, SHORTEST_FLANK + 1), LONGEST_FLANK)
    later = slice(span.recovery, span.recovery + width)
    leaps = np.mean((acc - span.line)[later]) > np.mean((span.line - acc)[low])
    return LEAPS if leaps else 1.0


def _delimit(
    acc: FloatArray,
    time: FloatArray,
    start: int,
    stop: int,
    z: float,
    fall: float,
    noise: FloatArray,
    min_depth: float,
) -> Span | None:
    """Widen or narrow a window to the evaluations that are low; None if no two in a row are low."""
    # Low is below the line by more than noise explains, or by half of what counts as a dip.
    tolerance = np.maximum(min_depth / 2, 1.5 * noise)
    first, last = start, stop
    # Twice: a window narrower than its dip has low evaluations in its flanks, which pull the line
    # down. The line of the widened window has flanks outside of the dip.
    for _ in range(2):
        line = reference(acc, time, first, last)
        low = line - acc > tolerance
        inside = np.flatnonzero(low[first:last])
        if not inside.size:
            return None
        first += int(inside[0])
        while first > SHORTEST_FLANK and low[first - 1]:
            first -= 1
        trough = first + int(np.argmin((acc - line)[first:last]))
        # On either side of its trough the dip ends at two evaluations in a row that are not low; a
        # single one may be luck. A window may hold another dip, with a return between.
        high = ~low[:-1] & ~low[1:]
        first = max(
            [first, *(np.flatnonzero(high[first : max(first, trough - 1)])[-1:] + first + 2)]
        )
        back = np.flatnonzero(high[trough + 1 :])
        last = trough + 1 + int(back[0]) if back.size else acc.size
    # A lone outlier beside an evaluation that is just below the line is no dip: both of a pair must
    # have at least a quarter of the depth.
    deep = line - acc > (line[trough] - acc[trough]) / 4
    pairs = low[first : last - 1] & low[first + 1 : last] & deep[first : last - 1]
    if not np.any(pairs & deep[first + 1 : last]):
        return None
    recovery = last if last < acc.size else None
    return Span(first - 1, trough, recovery, start, stop, z, fall, line)
