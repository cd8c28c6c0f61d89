"""Spikes of a loss over tens of values, of which no single one stands out from the noise."""

import numpy as np
import pandas as pd

from stabkit.detect.frames import rows_frame
from stabkit.detect.loss_tail import SHORTEST, ends_when_back, rose, spikes_that_stand_out
from stabkit.detect.robust import FloatArray, IntArray, rounded_by
from stabkit.detect.spikes import COLUMNS, find_spikes

BLOCK = 8  # values, or so many blocks, make one of the next width
LEAST = 1.2  # times what was expected; a loss may wander by less


def find_slow_spikes(steps: IntArray, values: FloatArray) -> pd.DataFrame:
    """Find spikes in the means of 8 values, of 64, and so on.

    `steps` and `values` are those of `usable_series`; the means are of logarithms. Of each width
    there must be `SHORTEST` means, so that their tail is known. A spike has two means in a row or
    more, is `LEAST` times what was expected, and meets the rules for spikes of single values
    (`rose`, `spikes_that_stand_out`). It rises by more than the rounding of printed values. Those
    that overlap one of a smaller width are left out.

    Returns the columns of `find_spikes`. Steps are those at which a mean begins, but `end` is the
    last step of the last one.
    """
    rows: list[tuple[int, int, int, int, float, float]] = []
    begins, ends, logs, rounding = steps, steps, np.log(values), rounded_by(values)
    while len(logs) // BLOCK >= SHORTEST:
        count = len(logs) // BLOCK * BLOCK
        begins, ends = begins[:count:BLOCK], ends[BLOCK - 1 : count : BLOCK]
        logs = logs[:count].reshape(-1, BLOCK).mean(axis=1)
        means = np.exp(logs)
        spikes = find_spikes(begins, means)
        peaks = means[np.searchsorted(begins, spikes["peak"])]
        large = (spikes["ratio"] >= LEAST) & (peaks * (1 - 1 / spikes["ratio"]) >= rounding)
        large &= spikes["end"] > spikes["flagged"]
        spikes = spikes[large].reset_index(drop=True)
        if not len(spikes):
            continue
        counts = rose(begins, means, spikes) & spikes_that_stand_out(begins, means, spikes)
        last = ends[np.searchsorted(begins, ends_when_back(begins, means, spikes))]
        for row in spikes.assign(end=last)[counts].itertuples(index=False, name=None):
            if all(row[3] < begin or end < row[0] for begin, _, _, end, _, _ in rows):
                rows.append(row)
    return rows_frame(sorted(rows), COLUMNS)
