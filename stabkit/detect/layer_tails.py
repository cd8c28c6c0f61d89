"""Tell which bursts stand out from the tail of the layers' own noise, however long the run is."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect.bursts import burst_gap, layer_onsets
from stabkit.detect.recurring import expected_beside, in_a_row, recurring
from stabkit.detect.robust import MAD_TO_STD, BoolArray, FloatArray, IntArray, unit_of
from stabkit.detect.spikes import FLOOR, measured_together

MOST_EXPECTED = 0.01  # values as high, expected by chance in the whole run
SHAPE = 0.2  # of the tail, a generalized Pareto law; that of Student's t with 5 degrees of freedom
SHARE, FEWEST = 0.01, 20  # the largest values tell the tail: this share, at least so many
SHORTEST = 30  # values outside of spikes; fewer show no tail, and each burst counts
WIDTHS = (1, 2, 4, 8, 16)  # values that are averaged, since a burst may last
AROUND = 50  # values on both sides, which tell the level and its noise
FIRST = 6  # values, before the first that has enough around it
FEW_LAYERS = 4  # fewer have no mean of their own
LEAST = 0.05  # deviations, the scale of a tail of equal values
MOVED = 20  # times; a level that rises so far, and stays, stands out
FEWEST_AFTER = 4  # values; fewer show no level
LOWEST = 1.0  # deviation; lower heights of bursts do not differ


def bursts_that_stand_out(
    layers: Sequence[tuple[IntArray, FloatArray]], spikes: Sequence[pd.DataFrame]
) -> list[BoolArray]:
    """Return for each spike of each layer whether chance would not bring its burst.

    `layers`: steps and values of each, as `usable_series` returns them. `spikes`: the rows of
    `find_layer_spikes`. Heights are the distances of log values from the median of the 101 around
    them, in robust deviations of these. Two series are made of the heights of all layers: the
    highest and the mean at each step. The mean shows noise that layers share, and the highest that
    of a single layer. Means over up to 16 steps are judged as well. The upper tail of each series
    is taken as a generalized Pareto law of fixed shape, whose scale is that of the largest values
    outside of all spikes. A burst stands out if, in one of the series, fewer than `MOST_EXPECTED`
    values as high are expected in the whole run, also among bursts that recur throughout the run
    (`recurring`). It also does if it raises a layer for good: the 50
    values from its first on have `MOVED` times the median of the 50 before.
    """
    found = [np.ones(len(rows), dtype=bool) for rows in spikes]
    some = [rows.assign(layer=i, depth=i) for i, rows in enumerate(spikes) if len(rows)]
    if not some:
        return found
    spiked, gap = pd.concat(some), burst_gap([steps for steps, _ in layers])
    table = layer_onsets(spiked, gap).merge(spiked, on=["layer", "depth", "onset"])
    table["stands_out"] = True
    for members, steps, logs, _ in measured_together(layers, SHORTEST):
        here = table["layer"].isin(members)
        if here.any():
            rows = table[here]
            row_of = rows["layer"].map({layer: row for row, layer in enumerate(members)})
            moved = _moved(steps, logs, row_of.to_numpy(), rows["flagged"].to_numpy())
            table.loc[here, "stands_out"] = moved | _judged(steps, logs, rows)
    counts = table.groupby("burst")["stands_out"].transform("any")
    for i, rows in counts.groupby(table["layer"]):
        found[int(i)] = rows.to_numpy()  # in order of the onset, as those of `find_layer_spikes`
    return found


def _judged(steps: IntArray, logs: FloatArray, spikes: pd.DataFrame) -> BoolArray:
    """Return for each spike whether its burst stands out in these layers, logs [layers, values]."""
    first = np.searchsorted(steps, spikes["flagged"].to_numpy())
    last = np.searchsorted(steps, spikes["end"].to_numpy())
    usual = np.arange(logs.shape[1]) >= FIRST
    for a, b in zip(first, last, strict=True):
        usual[a : b + 1] = False
    if usual.sum() < SHORTEST:
        return np.ones(len(spikes), dtype=bool)
    heights = _heights(logs, usual)
    series = [heights.max(axis=0), heights.mean(axis=0)][: 1 + (len(logs) >= FEW_LAYERS)]
    bursts = list(spikes.groupby("burst").indices.values())
    spans = [(first[at].min(), last[at].max() + 1) for at in bursts]
    ratios = np.array([spikes["ratio"].to_numpy()[at].max() for at in bursts])
    member = _recurring(series[0], spans, ratios)
    stands_out = np.zeros(len(bursts), dtype=bool)
    for values in series:
        for width in WIDTHS:
            means = sliding_window_view(values, width).mean(axis=1)
            healthy = means[sliding_window_view(usual, width).all(axis=1)]
            bar = tail_bar(healthy, MOST_EXPECTED / max(1, healthy.size))
            highest = np.array([means[max(0, a - width + 1) : b].max() for a, b in spans])
            rare = expected_beside(np.maximum(highest, LOWEST), member) <= MOST_EXPECTED
            stands_out |= (highest >= bar) & rare
    found = np.zeros(len(spikes), dtype=bool)
    for at, counts in zip(bursts, stands_out, strict=True):
        found[at] = counts
    return found


def _recurring(
    highest: FloatArray, spans: Sequence[tuple[int, int]], ratios: FloatArray
) -> BoolArray:
    """Return for each burst whether it recurs (`recurring`); spans and ratios are in any order."""
    first = np.array([a for a, _ in spans])
    high = np.array([in_a_row(highest[a:b] >= highest[a:b].max() / 2) for a, b in spans])
    order, member = np.argsort(first), np.zeros(len(spans), dtype=bool)
    member[order] = recurring(first[order], high[order], ratios[order], highest.size)
    return member


def _moved(steps: IntArray, logs: FloatArray, rows: IntArray, flagged: IntArray) -> BoolArray:
    """Return for each spike whether the level of its row is `MOVED` times that before, and stays.

    The heights do not show that, because their level moves too.
    """
    found = np.zeros(len(rows), dtype=bool)
    for i, (row, at) in enumerate(zip(rows, np.searchsorted(steps, flagged), strict=True)):
        before, after = logs[row, max(0, at - AROUND) : at], logs[row, at : at + AROUND]
        if before.size and after.size >= FEWEST_AFTER:
            found[i] = np.median(after) - np.median(before) >= np.log(MOVED)
    return found


def _heights(logs: FloatArray, usual: BoolArray) -> FloatArray:
    """Return the distance of each value from the median around, in robust deviations.

    Near the first values the median is of as many before as after, since norms fall at first. The
    deviations are of the `usual` values alone, and no smaller than the last digit that was printed.
    The median is of all: if the level moves for good, its first values do not stand out.
    """
    size = 2 * AROUND + 1
    level = _rolling(logs, size)
    for t in range(min(AROUND, logs.shape[1] // 2)):
        level[:, t] = np.median(logs[:, : 2 * t + 1], axis=1)
    off = logs - level
    noise = MAD_TO_STD * _rolling(np.where(usual, np.abs(off), np.nan), size)
    # Half of the values around may be one and the same rounded number, which shows no noise.
    digit = np.array([[unit_of(np.exp(row))] for row in logs])
    return np.asarray(off / np.fmax(np.maximum(FLOOR, digit / np.exp(level)), noise))


def _rolling(values: FloatArray, size: int) -> FloatArray:
    """Return the median of the `size` values around each one in its row, of fewer at the ends."""
    frame = pd.DataFrame(values.T)
    medians: FloatArray = frame.rolling(size, center=True, min_periods=1).median().to_numpy()
    return medians.T.copy()


def tail_bar(values: FloatArray, chance: float) -> float:
    """Return the height that one value reaches with this chance, from values without any spike.

    It is infinite if there are fewer than `SHORTEST` values, which show no tail.
    """
    if values.size < SHORTEST:
        return np.inf
    count = min(max(FEWEST, round(SHARE * values.size)), values.size // 4)
    largest = np.sort(values)[-count - 1 :]
    begin = max(float(largest[0]), LEAST)
    scale = max(float(np.maximum(largest[1:] - begin, 0).mean()), LEAST) * (1 - SHAPE)
    rarer = count / (values.size * chance)  # than values that reach the tail's beginning
    return begin + scale * float(rarer**SHAPE - 1) / SHAPE
