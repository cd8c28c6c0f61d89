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
LOST, GAINED = 0.9, 0.1  # share of the gain over chance that was lost; the least gain (accuracy)

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


def find_fall_to_chance(step: ArrayLike, accuracy: ArrayLike, chance: float) -> pd.DataFrame:
    """Find an accuracy that fell to that of guessing, and stayed there to the end.

    `chance` is the accuracy of guessing. The last three evaluations or more lie within a tenth of
    what was gained over chance, in absolute size, and three in a row before them stood at a gain of
    .1 or more. Columns as in `find_collapse`: start is the highest median of three, level that of
    the stretch; at most one row. Non-finite values are left out. This is a threshold, not a test.
    Raises ValueError for a chance outside 0..1.
    """
    if not 0 <= chance <= 1:
        raise ValueError(f"chance must be from 0 to 1, got {chance}")
    steps, values = checked_series(step, accuracy, "accuracy")
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    best = float(pd.Series(values).rolling(LASTS).median().max())
    near = stretches(np.abs(values - chance) <= (1 - LOST) * (best - chance))
    if best - chance < GAINED or not near or near[-1][1] < len(values):
        return pd.DataFrame(columns=COLUMNS)
    onset = near[-1][0]
    if len(values) - onset < LASTS:
        return pd.DataFrame(columns=COLUMNS)
    row = (steps[onset], steps[-1], best, float(np.median(values[onset:])))
    return pd.DataFrame([row], columns=COLUMNS)


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
