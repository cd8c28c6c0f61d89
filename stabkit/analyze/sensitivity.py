"""Measure what a range of learning rates costs an arm, and up to which rate it stays stable."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats

from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.intervals import AT_ONCE, ENOUGH, UNKNOWN, Interval
from stabkit.analyze.learning_rate import LR
from stabkit.analyze.verdict import UNSTABLE

RESAMPLES = 9999
FALSE_ALARMS = 0.05  # of stable runs, at most, are called unstable
CHANCE = 0.025  # of calling a value of stable runs unstable
FloatArray = NDArray[np.float64]


def points_lost(lr: ArrayLike, level: ArrayLike) -> float:
    """Return the mean distance below the best level over the range of lr, in points.

    The mean is over log lr (trapezoids). lr: [m], increasing, at least two; level: [m].
    """
    return float(_points_lost(np.asarray(lr, dtype=float), np.asarray(level, dtype=float)))


def _points_lost(lr: FloatArray, level: FloatArray) -> FloatArray:
    """Compute `points_lost` for many arms at once: level [..., m] gives [...]."""
    x, below = np.log(lr), level.max(axis=-1, keepdims=True) - level
    lost: FloatArray = integrate.trapezoid(below, x, axis=-1) / (x[-1] - x[0])
    return lost


def lr_sensitivity(frame: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return the learning-rate sensitivity of every arm, one row each; smaller is better.

    This follows Wortsman et al. 2023 (arXiv:2309.14322), with levels instead of losses: the mean,
    over log lr between the smallest and the largest rate, of (best level - max(level, untrained
    level)). So a run that diverges costs what it never learned. Levels are means over seeds, and
    each arm is compared with its own best. frame: rows of `run_scores`; arms: the settings that
    name an arm.

    Columns: `arms`; sensitivity (points); low, high (95 % bootstrap over seeds, all rates of a seed
    together; NaN with fewer than ten seeds that have every rate); gained (best minus untrained
    level, since an arm that learns at no rate has no sensitivity either); smallest, largest (lr);
    rates; seeds. If the arms share at least two rates, only shared rates count. Otherwise ranges
    would be compared, not arms.

    Noise adds to the sensitivity, because the best level is the luckiest one. With 2 points of
    noise a run and 4 rates, a flat arm scores 1.2 with 3 seeds and 0.7 with 8, and no interval
    holds 0. If the levels truly fall (50, 48, 40, 20) the value is right. The interval then holds
    the truth in 79 % of samples with 3 seeds, 90 % with 10 and 92 % with 20, so that fewer than
    ten give none.

    Raises DoesNotApplyError if an arm is left with one rate, or if a rate is no number.
    """
    known = frame.dropna(subset=[LR, "level"])
    for rate in known[LR]:
        if not isinstance(rate, Real):
            raise DoesNotApplyError(f"{LR} {rate!r} is no number")
    parts = dict(_parts(known[known[LR] > 0], arms))  # a run with rate 0 does not train
    tables = {key: _matrix(rows) for key, rows in parts.items()}
    shared = sorted(set.intersection(*(set(t.columns) for t in tables.values()))) if tables else []
    found = []
    for key, whole in tables.items():
        table = whole[shared] if len(shared) > 1 else whole
        if table.shape[1] < 2:
            named = ", ".join(f"{k} {v}" for k, v in zip(arms, key, strict=True)) or "these runs"
            only = ", ".join(f"{rate:g}" for rate in table.columns)
            raise DoesNotApplyError(f"{named}: one {LR} alone ({only}) has no sensitivity")
        rates, levels = table.columns.to_numpy(dtype=float), table.mean()
        low, high = _bootstrap(rates, table.dropna().to_numpy())
        found.append(
            dict(zip(arms, key, strict=True))
            | {"sensitivity": points_lost(rates, levels), "low": low, "high": high}
            | {"gained": levels.max() - parts[key]["untrained"].mean()}
            | {"smallest": rates[0], "largest": rates[-1], "rates": len(rates)}
            | {"seeds": len(table.dropna())}
        )
    return pd.DataFrame(found)


def _parts(
    frame: pd.DataFrame, keys: Sequence[str]
) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    """Split rows by their values of `keys`, in order of appearance; one part without keys."""
    if not keys:
        return [((), frame)] if len(frame) else []
    groups = frame.groupby(list(keys), sort=False, dropna=False)
    return [(key if isinstance(key, tuple) else (key,), part) for key, part in groups]


def _matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """Return levels [seeds, rates], no lower than untrained; NaN if there is no such run."""
    seeds = rows["seed"] if rows["seed"].notna().any() else 0  # if the configurations have no seed
    floored = rows.assign(level=rows[["level", "untrained"]].max(axis=1), seed=seeds)
    return floored.pivot_table(index="seed", columns=LR, values="level")


def _bootstrap(rates: FloatArray, levels: FloatArray) -> Interval:
    if len(levels) < ENOUGH:
        return UNKNOWN
    rng, rows = np.random.default_rng(0), max(1, AT_ONCE // levels.size)
    lost = []
    for first in range(0, RESAMPLES, rows):
        picks = rng.integers(len(levels), size=(min(rows, RESAMPLES - first), len(levels)))
        lost.append(_points_lost(rates, levels[picks].mean(axis=1)))
    low, high = np.quantile(np.concatenate(lost), [0.025, 0.975])
    return float(low), float(high)


def unstable_from(runs: int) -> int:
    """Return how many of the runs must be unstable to be more than false alarms.

    With one run that is one, since nothing else is known. Else it is the smallest number that false
    alarms in `FALSE_ALARMS` of the runs reach with a chance of at most `CHANCE` (binomial): 2 of 2
    to 5 runs, 3 of 6 to 13.
    """
    if runs == 1:
        return 1
    return int(stats.binom.isf(CHANCE, runs, FALSE_ALARMS)) + 1


def stable_frontier(
    frame: pd.DataFrame, by: Sequence[str] = ("train.batch",), along: str = LR
) -> pd.DataFrame:
    """Return up to which value of `along` runs are stable, for each value of `by`.

    A value is unstable if more of its runs are than false alarms explain (`unstable_from`), and
    stable if at most a tenth are; between the two it counts on neither side. So one false alarm in
    a few seeds makes no rate unstable.

    Columns: `by`; stable (the largest value that is stable, with a verdict on every run; NaN if
    none); unstable (the smallest value above it, or of all, that is unstable; NaN if none); below
    (how many values below `stable` are unstable: 0 if stability ends once).
    """
    found = []
    for key, rows in _parts(frame.dropna(subset=[along]), by):
        verdicts = rows.groupby(along)["verdict"]
        fallen = verdicts.agg(lambda v: v.isin(UNSTABLE).sum()).astype(int)
        known = verdicts.agg(lambda v: (v != "unknown").sum()).astype(int)
        good = (10 * fallen <= known) & (known == verdicts.size())
        bad = fallen >= verdicts.size().map(unstable_from)
        stable = max(good.index[good], default=math.nan)
        above = [x for x in bad.index[bad] if not x < stable]
        head = dict(zip(by, key, strict=True))
        below = int(bad.sum()) - len(above)
        found.append(
            head | {"stable": stable, "unstable": min(above, default=math.nan), "below": below}
        )
    return pd.DataFrame(found)
