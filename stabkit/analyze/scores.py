"""How stable a run was, in numbers: dips, steps and points lost."""

import math
from typing import Any

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.events import final_count, final_level, refused
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


def is_unstable(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each run dipped, collapsed or diverged; one that is `unknown` did not show it."""
    return frame["verdict"].isin(UNSTABLE)
