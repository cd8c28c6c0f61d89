"""How stable a run was, in numbers: dips, steps and points lost."""

import math
from typing import Any

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.events import final_count, final_level, refused
from stabkit.analyze.verdict import UNSTABLE, verdict
from stabkit.detect.dips import SHORTEST


def run_scores(runs: Diagnoses) -> pd.DataFrame:
    """Return one row a run: cell, seed, the settings that tell cells apart, its `score`, run."""
    rows = [
        {"cell": cell_label(cell), "seed": run.settings.get("seed")}
        | {**cell.settings, **score(run), "run": run.name}
        for cell in group_cells(runs)
        for run in cell.runs
    ]
    return pd.DataFrame(rows)


def score(run: Diagnosis) -> dict[str, Any]:
    """Return the scores of a run.

    verdict: that on the accuracy alone, whatever gradients and losses did; `diverged` and
    `collapsed` as in `verdict`.
    evaluations: how many there are; steps: from the first to the last of them.
    untrained, level, best: in points (100 times the accuracy). The first evaluation, the median of
    the last fifth, and the highest median of as many in a row.
    dips, dip_rate, lost_steps: the dips, how many per 1,000 steps, and the steps spent in them.
    lost_points, with lost_by: `permanent` is what its dips took for good, if the detector knows
    that for each of them. Otherwise `sag`: best minus level, which is never negative, and slightly
    positive from noise alone.
    """
    evals, found = run.evals(run.metric), run.dips
    lacking = run.gaps("evals")
    values = 100 * evals["value"]
    steps = int(evals["step"].iloc[-1] - evals["step"].iloc[0]) if len(evals) else 0
    told = 0 if refused(found) else len(evals)  # a refused series says nothing
    values = values[:told]
    level = final_level(values) if told else math.nan
    best = float(values.rolling(final_count(values)).median().max()) if told else math.nan
    falls = len(found) + len(run.drifts)
    lost, lost_by = _lost_points(found, best - level)
    return {
        "verdict": verdict(
            judged=told >= SHORTEST and not lacking,
            lost=len(run.nonfinite),
            collapses=len(run.collapses),
            falls=falls,
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
    """Return which runs dipped, collapsed or diverged. One that is `unknown` is not among them."""
    return frame["verdict"].isin(UNSTABLE)
