"""Find dips, drifts, outliers and unrest in an accuracy of a run."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.refused_series import attempt, refused
from stabkit.detect import find_drift, find_outliers, find_unrest
from stabkit.detect.dips import search_dips
from stabkit.store.reader import StoredRun

NEAR, SWINGS = 12, 3  # evaluations; outliers within so many that may be swings
THEN = ("onset", "trough", "depth")  # what the log of a run has of a dip


@dataclass(frozen=True)
class Accuracy:
    """One evaluation of a run at all its steps."""

    run: StoredRun
    metric: str

    @cached_property
    def evals(self) -> pd.DataFrame:
        return self.run.evals(self.metric)

    @cached_property
    def chance(self) -> float:
        """The accuracy of guessing; NaN if it is not known."""
        return float(self.evals["chance"].iloc[0]) if len(self.evals) else 0.0

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """[evals, n]: which samples were right (`StoredRun.correct`). Raises ValueError."""
        return self.run.correct(self.metric)

    def series(self) -> dict[str, Any]:
        """Return the arguments that `find_dips` and `find_drift` share."""
        return {
            "step": self.evals["step"].to_numpy(),
            "accuracy": self.evals["value"].to_numpy(),
            "n": self.evals["n"].to_numpy() if counts_known(self.evals) else None,
            "correct": self.correct,
        }


class Falls(NamedTuple):
    """How an accuracy fell or swung.

    Rows of `find_dips`, possible dips, `find_drift`, `find_outliers`, `find_unrest`.
    `steps`, `accuracy`: of the evaluations that were searched.
    """

    dips: pd.DataFrame
    possible_dips: pd.DataFrame
    drifts: pd.DataFrame
    outliers: pd.DataFrame
    unrest: pd.DataFrame
    steps: NDArray[np.int64]
    accuracy: NDArray[np.float64]


def falls(seen: Accuracy) -> Falls:
    """Return the dips, possible dips (`search_dips`), drifts, outliers and unrest of an evaluation.

    Outliers inside a dip or unrest are left out. Dips get further columns: `end` is the recovery,
    or the last evaluation if the run ended inside the dip. `steps`, `samples` and `epochs` say how
    long the dip lasted; the last two are NaN if the settings do not tell the batch size or the size
    of the data.
    """
    run = seen.run
    known = 0.0 if math.isnan(seen.chance) else seen.chance
    both = attempt(
        run,
        f"dips of {seen.metric}",
        lambda: search_dips(**seen.series(), chance=known),
        lambda: search_dips([], []),
    )
    found, possible = (
        both[both["possible"] == asked].drop(columns="possible").reset_index(drop=True)
        for asked in (False, True)
    )
    alone = _outliers(seen)
    dips, outliers = (None if refused(events) else events for events in (found, alone))
    sagged = attempt(
        run,
        f"drift of {seen.metric}",
        lambda: find_drift(**seen.series(), dips=dips, outliers=outliers),
        lambda: find_drift([], []),
    )
    if math.isnan(seen.chance):
        found["relative_depth"] = math.nan
    found = found.assign(end=found["recovery"].fillna(seen.evals["step"].max()))
    lasts = found["end"] - found["onset"]
    samples = lasts * (_number(run, "train.batch") or math.nan)
    epochs = samples / (_number(run, "data.num_train") or math.nan)
    found = found.assign(steps=lasts, samples=samples, epochs=epochs)
    swung = _unrest(seen, alone["onset"].to_numpy())
    alone = _outside(swung, _outside(found, alone))
    steps, accuracy = seen.evals["step"].to_numpy(), seen.evals["value"].to_numpy()
    return Falls(found, possible, sagged, alone, swung, steps, accuracy)


def shown_from(steps: NDArray[np.int64], onsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first evaluation after each onset: the first that shows a fall."""
    shown: NDArray[np.int64] = steps[np.searchsorted(steps, onsets, side="right")]
    return shown


def _number(run: StoredRun, key: str) -> float:
    value = run.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def counts_known(evals: pd.DataFrame) -> bool:
    """Return whether the sample counts are known; a log converted without `--n` has none."""
    return bool((evals["n"] > 0).all())


def _outliers(seen: Accuracy) -> pd.DataFrame:
    """Return the rows of `find_outliers` on an evaluation."""
    evals = seen.evals
    counts = evals["n"].to_numpy() if len(evals) else None
    accuracy = evals["step"].to_numpy(), evals["value"].to_numpy(), counts
    return attempt(
        seen.run,
        f"outliers of {seen.metric}",
        lambda: find_outliers(*accuracy),
        lambda: find_outliers([], []),
    )


def _unrest(seen: Accuracy, outliers: NDArray[np.int64]) -> pd.DataFrame:
    """Return the rows of `find_unrest` on an evaluation, without its single `outliers` [steps].

    Three or more of them within `NEAR` evaluations may be swings, and are kept.
    """
    evals = seen.evals
    at = np.flatnonzero(evals["step"].isin(outliers))
    close = np.abs(at[:, None] - at) < NEAR
    evals = evals.drop(index=evals.index[at[close.sum(axis=1) < SWINGS]])
    counts = evals["n"].to_numpy() if counts_known(evals) else None
    return attempt(
        seen.run,
        f"unrest of {seen.metric}",
        lambda: find_unrest(evals["step"].to_numpy(), evals["value"].to_numpy(), counts),
        lambda: find_unrest([], []),
    )


def _outside(events: pd.DataFrame, outliers: pd.DataFrame) -> pd.DataFrame:
    """Return the outliers that are in no event."""
    begins, ends = events["onset"], events["end"]
    inside = [bool(((begins <= s) & (s <= ends)).any()) for s in outliers["onset"]]
    return outliers[~np.array(inside, dtype=bool)].reset_index(drop=True)


def final_count(values: pd.Series) -> int:
    """Return how many evaluations make the final level: a fifth. One alone is too noisy."""
    return max(1, round(len(values) / 5))


def final_level(values: pd.Series) -> float:
    """Return the median of the last fifth of the values."""
    return float(values.tail(final_count(values)).median())


def confirmed_then(seen: Accuracy, found: pd.DataFrame) -> pd.DataFrame:
    """Return dips that were confirmed while the run trained, and that overlap none of `found`.

    found: dips of the whole run, with onset and recovery. One row per dip, as the log has it:
    onset, trough, depth.
    """
    ends = found["recovery"].fillna(math.inf)
    rows = {}
    for entry in seen.run.log_entries():
        kind = entry.get("kind"), entry.get("cause"), entry.get("metric")
        if kind != ("confirmed", "dip", seen.metric):
            continue
        onset, trough, depth = (entry.get(key) for key in THEN)
        known = type(onset) is int and type(trough) is int and type(depth) is float
        if known and not ((found["onset"] < trough) & (ends > onset)).any():
            rows[onset] = (onset, trough, depth)
    return pd.DataFrame(list(rows.values()), columns=list(THEN))
