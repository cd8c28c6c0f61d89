"""Collapse: features that hardly tell images apart, or a loss that teaches nothing."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.robust import checked_series, stretches

SHARE = 0.25  # of the untrained network's spread; known collapses fall below a tenth of it
LASTS = 3  # measurements in a row: a single batch may be unusual
WINDOW = 9  # steps of the running median of the loss
NOTHING, CHANCE = 0.05, 0.98  # loss relative to chance: a task solved for free, a task not begun
SHORTEST = 50  # steps; in a shorter run a loss at chance only means that training began

# Recorded signals whose fall is a collapse: stds over images, and effective ranks.
SPREADS = (
    *("feature_std", "embedding_std", "effective_rank", "probe_feature_std", "probe_rank"),
    *("teacher_feature_std", "teacher_rank"),
)
COLUMNS = ["onset", "end", "start", "level"]


def find_collapse(step: ArrayLike, spread: ArrayLike) -> pd.DataFrame:
    """Find stretches in which a measure of spread stays at a quarter of its first value or less.

    `spread` is a standard deviation of features or their effective rank, by step; the first finite
    value is that of the untrained network. Columns: onset, end (steps, both inside), start (that
    first value), level (the lowest within). This is a threshold, not a test: a run whose features
    narrow for other reasons alarms too. Non-finite values end a stretch; they are events of their
    own.
    """
    steps, values = checked_series(step, spread, "spread")
    finite = values[np.isfinite(values)]
    if not len(finite) or finite[0] <= 0:
        return pd.DataFrame(columns=COLUMNS)
    rows = [
        (steps[a], steps[b - 1], finite[0], values[a:b].min())
        for a, b in stretches(values <= SHARE * finite[0])
        if b - a >= LASTS
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def find_stuck_loss(step: ArrayLike, relative: ArrayLike) -> pd.DataFrame:
    """Find a loss that is pinned from some step in the first half of a run to its end.

    `relative` is the loss divided by that of chance, one value per step. It is pinned where its
    running median is at CHANCE or above (nothing is learned), or at NOTHING or below (the task
    costs nothing: all images are in one cluster). Columns as in `find_collapse`; at most one row.
    """
    steps, raw = checked_series(step, relative, "relative")
    values = pd.Series(raw)
    if len(values) < SHORTEST:
        return pd.DataFrame(columns=COLUMNS)
    median = values.rolling(WINDOW, center=True, min_periods=1).median()
    for pinned in (median >= CHANCE, median <= NOTHING):
        found = stretches(pinned.to_numpy())
        if found and found[-1][1] == len(values) and found[-1][0] <= len(values) / 2:
            onset = found[-1][0]
            row = (steps[onset], steps[-1], values.iloc[0], median.iloc[onset:].median())
            return pd.DataFrame([row], columns=COLUMNS)
    return pd.DataFrame(columns=COLUMNS)
