"""Date a spike by its own height, so that layers of unequal noise or height can be compared."""

import numpy as np

from stabkit.detect.robust import FloatArray, IntArray

NEAREST, FARTHEST = 15, 40  # values before the first flagged one that tell the level before it
FEWEST = 10  # first values of the series that tell it if there are not so many


def half_height_onset(
    steps: IntArray, log_values: FloatArray, first: int, peak: int, since: int = 0
) -> int:
    """Return the step at which a spike reaches half of its height, as a logarithm.

    `first` and `peak` are the positions of its first flagged and of its largest value. The height
    is that of the peak over the median of the values `FARTHEST` to `NEAREST` before `first`. The
    onset is the first value from `first` on that stands at half of it or above, or the first of the
    unbroken stretch of such values before it: a single high value long before, as in a restless
    layer, is no part of the spike. The stretch reaches back by `NEAREST` values at most, and not
    before position `since`, where an earlier spike may end. A peak that is not above that median,
    as on a steeply falling level, is dated at `first`.

    Why not the first flagged value: in a rise that takes several steps, a layer with less noise or
    a higher peak is flagged earlier, although all layers rise at once. All reach half of their own
    height at the same time, whatever their noise, and whatever their height if the rises last
    equally long.
    """
    start, stop = max(0, first - FARTHEST), max(FEWEST, first - NEAREST + 1)
    level = float(np.median(log_values[start:stop]))
    if log_values[peak] <= level:
        return int(steps[first])
    high = log_values[: peak + 1] >= (level + log_values[peak]) / 2
    at = first + int(np.argmax(high[first:]))
    begin = min(max(since, first - NEAREST), first)
    while at > begin and high[at - 1]:
        at -= 1
    return int(steps[at])
