"""Growth: gradient norms whose level rises far above its lowest one, however slowly."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import MAD_TO_STD, FloatArray, IntArray
from stabkit.detect.spikes import FLOOR, measured_together
from stabkit.detect.swells import COLUMNS, SHORTEST

GROWN = 20.0  # times the lowest level before; healthy norms grow several times as the rate decays
# A level is the median of a twentieth of the values, and of so many at least.
OF_RUN, FEWEST = 20, 13
BEGINS = 10  # a tenth of the run: before, a layer behind a head of zeros begins near 0


def find_growth(layers: Sequence[tuple[IntArray, FloatArray]]) -> list[pd.DataFrame]:
    """Find layers whose level grows to 20 times its lowest one, at any pace.

    `layers`: steps and values of each, as `usable_series` returns them. The middle layer (the
    median of the logarithms) tells when: the level is its running median. Only levels behind the
    first tenth of the run count. The growth begins where the level passes half of the rise, in
    logarithms, and ends where it falls below that again, or with the run. This is a threshold, not
    a test.

    Returns for each layer at most one row, with the columns of `find_swells`: onset, end, height
    (of the layer's rise, in deviations of its values from its level), ratio (of its levels). A
    layer that does not grow 20 times itself has none.
    """
    found = [rows_frame([], COLUMNS) for _ in layers]
    for members, steps, logs, _ in measured_together(layers, SHORTEST):
        width = max(FEWEST, len(steps) // OF_RUN)
        level = _level(np.median(logs, axis=0), width)
        first = len(steps) // BEGINS
        rise = level[first:] - np.minimum.accumulate(level[first:])
        high = first + int(rise.argmax())
        if rise.max() < math.log(GROWN):
            continue
        low = first + int(level[first : high + 1].argmin())
        above = level >= (level[low] + level[high]) / 2
        onset = low + int(np.flatnonzero(~above[low:high])[-1]) + 1
        back = np.flatnonzero(~above[high:])
        end = high + int(back[0]) - 1 if back.size else level.size - 1
        middle = width // 2  # of the values of a level
        last = len(steps) - 1 if not back.size else end + middle
        for i, own in zip(members, logs, strict=True):
            levels = _level(own, width)
            rises = float(levels[high] - levels[low])
            if rises >= math.log(GROWN):
                around = own[middle : middle + levels.size] - levels
                noise = max(FLOOR, MAD_TO_STD * float(np.median(np.abs(around))))
                row = steps[onset + middle], steps[last], rises / noise, math.exp(rises)
                found[i] = rows_frame([row], COLUMNS)
    return found


def _level(logs: FloatArray, width: int) -> FloatArray:
    """Return the median of each `width` values in a row [values - width + 1]."""
    level: FloatArray = pd.Series(logs).rolling(width).median().to_numpy()[width - 1 :]
    return level
