"""Collapse: features that hardly tell images apart, or a loss with nothing left to teach."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, checked_series

SHARE = 0.25  # of what a network spreads untrained; what is known to collapse falls below a tenth
LASTS = 3  # measurements: one batch alone may be odd
WINDOW = 9  # steps of the loss's running median
NOTHING, CHANCE = 0.05, 0.98  # loss relative to chance: a task solved for free, a task not begun
SHORTEST = 50  # steps below which a loss at chance is only a beginning

COLUMNS = ["onset", "end", "start", "level"]


def find_collapse(step: ArrayLike, spread: ArrayLike) -> pd.DataFrame:
    """Stretches in which a measure of spread stays at a quarter, or less, of its first value.

    `spread` is a standard deviation of features or their effective rank, by step; the first finite
    value is the untrained network's. Columns: onset, end (steps, both inside), start (that first
    value), level (the lowest within). A threshold, not a test: its false alarms are those of runs
    whose features narrow for other reasons. Non-finite values end a stretch; they are events of
    their own.
    """
    steps, values = checked_series(step, spread, "spread")
    finite = values[np.isfinite(values)]
    if not len(finite) or finite[0] <= 0:
        return pd.DataFrame(columns=COLUMNS)
    rows = [
        (steps[a], steps[b - 1], finite[0], values[a:b].min())
        for a, b in _stretches(values <= SHARE * finite[0])
        if b - a >= LASTS
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def find_stuck_loss(step: ArrayLike, relative: ArrayLike) -> pd.DataFrame:
    """A loss that is pinned, from some step of the first half of a run to its end.

    `relative` is the loss as a share of chance's, one value a step. Pinned is its running median at
    CHANCE or above (nothing is learned) or at NOTHING or below (the task costs nothing: all images
    in one cluster). Columns as in `find_collapse`; at most one row.
    """
    steps, raw = checked_series(step, relative, "relative")
    values = pd.Series(raw)
    if len(values) < SHORTEST:
        return pd.DataFrame(columns=COLUMNS)
    median = values.rolling(WINDOW, center=True, min_periods=1).median()
    for pinned in (median >= CHANCE, median <= NOTHING):
        stretches = _stretches(pinned.to_numpy())
        if stretches and stretches[-1][1] == len(values) and stretches[-1][0] <= len(values) / 2:
            onset = stretches[-1][0]
            row = (steps[onset], steps[-1], values.iloc[0], median.iloc[onset:].median())
            return pd.DataFrame([row], columns=COLUMNS)
    return pd.DataFrame(columns=COLUMNS)


def _stretches(flags: BoolArray) -> list[tuple[int, int]]:
    """First and behind-the-last index of every stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))
