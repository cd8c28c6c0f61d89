"""Tell spikes that recur throughout a series, as hard batches do, and what they explain."""

import numpy as np
import pandas as pd

from stabkit.detect.level_filters import median
from stabkit.detect.robust import MAD_TO_STD, BoolArray, FloatArray, IntArray

FEWEST = 6  # spikes; fewer are single events
PARTS = 3  # of the series; each must hold half of an even share of the spikes, rounded down
BRIEF = 2  # high values; a spike of more is no hard batch, or two of them that were merged
GROWS = 0.01  # p-value of Kendall's tau, from which on heights are said to grow
# The least scatter of log heights. The noise that makes a height is that of up to 100 values, so
# equal spikes differ by about so much.
SCATTER = 0.1
# Values at one place of every period, as of the last small batch of each epoch: so many at least,
# whose median distance from the level is so many times that of all.
AT_PLACE, WILDER, AS_FAR = 10, 3.0, 5.0
SHORTEST, LONGEST = 5, 2000  # values in a period


def recurring(at: IntArray, high: IntArray, ratios: FloatArray, size: int) -> BoolArray:
    """Return for each spike whether it is one of many that recur throughout a series.

    `at`: the index of each spike, in order, in a series of `size` values. `high`: how many of its
    values are high. `ratios`: to what was expected. Brief spikes recur if there are `FEWEST` or
    more, in each third of the series about as many, and if their ratios do not grow.
    """
    brief = high <= BRIEF
    count = int(brief.sum())
    nothing = np.zeros(len(at), dtype=bool)
    if count < FEWEST:
        return nothing
    shares = np.bincount(at[brief] * PARTS // size, minlength=PARTS)
    if shares.min() < count // (2 * PARTS):
        return nothing
    return nothing if _grow(ratios[brief]) else brief


def expected_beside(heights: FloatArray, member: BoolArray) -> FloatArray:
    """Return for each height how many such ones are expected among those that recur (`member`).

    A height is compared with the other members, not with itself. Above the median of these, log
    heights are taken as exponential. Their scale is known from so many heights only, so the chance
    is that of the next one, not of an exponential law with this scale. It is 0 if none recur.
    """
    logs, found = np.log(heights), np.zeros(len(heights))
    for i in range(len(heights) if member.any() else 0):
        others = np.sort(logs[member & (np.arange(len(heights)) != i)])
        upper = others[others.size // 2 :] - others[others.size // 2]
        scale = max(float(upper.mean()), SCATTER)
        above = max(0.0, float(logs[i] - others[others.size // 2])) / scale
        found[i] = upper.size * (1 + above / upper.size) ** -upper.size
    return found


def usual_at_its_place(logs: FloatArray, at: int) -> bool:
    """Return whether values as high as that `at` an index are usual at its place in a period.

    Heights are the distances of the logarithms from the median of the 11 around. A period makes a
    place if heights there, at its multiples from `at`, are `WILDER` times as large as all are, by
    their medians, and twice as large in each third of the series. Up to `AS_FAR` deviations are
    usual there.
    """
    heights = logs - pd.Series(logs).rolling(11, center=True, min_periods=1).median().to_numpy()
    sizes = np.abs(heights)
    usual = median(sizes)
    for period in range(SHORTEST, min(LONGEST, len(logs) // AT_PLACE) + 1):
        place = np.arange(at % period, len(logs), period)
        there = sizes[place[place != at]]
        typical = median(there)
        if typical >= WILDER * usual and all(
            median(part) >= 2 * usual for part in np.array_split(there, PARTS)
        ):
            far = AS_FAR * MAD_TO_STD * typical
            return bool(heights[at] <= far) and not _grow(sizes[place])
    return False


def _grow(sizes: FloatArray) -> bool:
    from scipy.stats import kendalltau  # slow to import, and not needed for few spikes

    order = np.arange(len(sizes))
    return bool(kendalltau(order, sizes, alternative="greater").pvalue <= GROWS)


def in_a_row(high: BoolArray) -> int:
    """Return how many values are high: those that follow another, and one before them.

    Spikes that are a few steps apart are one event; they do not follow one another.
    """
    return 1 + int((high[1:] & high[:-1]).sum())
