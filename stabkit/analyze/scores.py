"""How stable a run was, in numbers, and how stable a cell of a sweep: dips, steps, points lost."""

import math
from typing import Any

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.events import final_count, final_level, refused
from stabkit.analyze.intervals import Interval, mean_interval, rate_interval, share_interval
from stabkit.analyze.verdict import UNSTABLE, verdict


def run_scores(runs: Diagnoses) -> pd.DataFrame:
    """One row a run: cell, seed, every setting that tells the cells apart, its `score`, run."""
    rows = [
        {"cell": cell_label(cell), "seed": run.settings.get("seed")}
        | {**cell.settings, **score(run), "run": run.name}
        for cell in group_cells(runs)
        for run in cell.runs
    ]
    return pd.DataFrame(rows)


def score(run: Diagnosis) -> dict[str, Any]:
    """verdict: as in `verdict`, but `stable` where only gradients burst; evaluations;
    steps: from the first to the last of them; untrained, level, best, in points (100 times the
    accuracy): the first evaluation, the median of the last fifth, the highest median of as many in
    a row; dips; dip_rate: per 1,000 steps; lost_steps: spent in dips; lost_points, with lost_by:
    `permanent` (what its dips took for good, where the detector knows that of each) or `sag` (best
    less level, which is 0 or more by definition and a little more than 0 by noise).
    """
    evals, found = run.evals(run.metric), run.dips
    lacking = run.gaps("evals")
    values = 100 * evals["value"]
    steps = int(evals["step"].iloc[-1] - evals["step"].iloc[0]) if len(evals) else 0
    told = 0 if refused(found) else len(evals)  # a series that is refused tells nothing
    values = values[:told]
    level = final_level(values) if told else math.nan
    best = float(values.rolling(final_count(values)).median().max()) if told else math.nan
    falls = len(found) + len(run.drifts)
    lost, lost_by = _lost_points(found, best - level)
    return {
        "verdict": verdict(
            len(run.nonfinite), len(run.collapses), 0 if lacking else told, falls, 0
        ),
        "evaluations": len(evals),
        "steps": steps,
        "untrained": values.iloc[0] if told else math.nan,
        "level": level,
        "best": best,
        "dips": len(found),
        "dip_rate": 1000 * len(found) / steps if steps else math.nan,
        "lost_steps": int((found["end"] - found["onset"]).sum()),
        "lost_points": lost,
        "lost_by": lost_by,
    }


def _lost_points(found: pd.DataFrame, sag: float) -> tuple[float, str]:
    known = "permanent_loss" in found and len(found) and found["permanent_loss"].notna().all()
    if not known:
        return sag, "sag"
    return 100 * float(found["permanent_loss"].clip(lower=0).sum()), "permanent"


def sweep_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of `run_scores`: cell, runs, then each score with its 95 % interval.

    A score `x` has columns x, x_low, x_high, NaN where nothing can be said. dip_rate: per 1,000
    steps of all its runs, exact Poisson; unstable: share of the runs whose verdict is known,
    Clopper-Pearson; level, lost_steps, lost_points: means over runs, by `mean_interval`.
    """
    return pd.DataFrame(
        [_cell_row(str(cell), rows) for cell, rows in frame.groupby("cell", sort=False)]
    )


def _cell_row(cell: str, rows: pd.DataFrame) -> dict[str, object]:
    known = rows[rows["verdict"] != "unknown"]
    num_dips, exposure = int(known["dips"].sum()), float(known["steps"].sum()) / 1000
    bad = int(is_unstable(known).sum())
    row: dict[str, object] = {"cell": cell, "runs": len(rows), "known": len(known)}
    rate = num_dips / exposure if exposure else math.nan
    row |= _with_interval("dip_rate", rate, rate_interval(num_dips, exposure))
    share = bad / len(known) if len(known) else math.nan
    row |= _with_interval("unstable", share, share_interval(bad, len(known)))
    for column in ("level", "lost_steps", "lost_points"):
        values = (rows if column == "level" else known)[column].dropna()
        row |= _with_interval(column, values.mean(), mean_interval(values))
    return row


def _with_interval(name: str, value: float, interval: Interval) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def is_unstable(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each run dipped, collapsed or diverged; one that is `unknown` did not show it."""
    return frame["verdict"].isin(UNSTABLE)
