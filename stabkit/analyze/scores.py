"""How stable a run was, in numbers: dips, steps and points lost."""

import math
from typing import Any

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.refused_series import refused
from stabkit.detect.dips import SHORTEST


def run_scores(runs: Diagnoses) -> pd.DataFrame:
    """Return one row per run: cell, seed, the settings that tell cells apart, its `score`, run."""
    rows = [
        {"cell": cell_label(cell), "seed": run.settings.get("seed")}
        | {**cell.settings, **score(run), "run": run.name}
        for cell in group_cells(runs)
        for run in cell.runs
    ]
    return pd.DataFrame(rows)


def score(run: Diagnosis) -> dict[str, Any]:
    """Return the scores of a run.

    verdict: that of the diagnosis, on everything recorded.
    on_accuracy: whether there are enough evaluations to find a dip; without, it has no dips to
    compare, whatever `dips` says.
    evaluations: how many there are; steps: from the first to the last of them.
    untrained, level, best: in points (100 times the accuracy). The first evaluation, the median of
    the last fifth, and the highest median of as many in a row.
    dips, lost_steps, exposure, dip_rate: the dips, the steps spent in them, the other steps, and
    the dips per 1,000 of those. Within a dip no other can begin, so a run that collapses once for
    good has few steps of exposure and a high rate.
    lost_points: best minus level. It is never negative, and slightly positive from noise alone.
    """
    evals, found = run.accuracy.evals, run.accuracy.dips
    lacking = run.gaps("evals")
    values = 100 * evals["value"]
    told = 0 if refused(found) else len(evals)  # a refused series says nothing
    both = run.accuracy.level, run.accuracy.best
    level, best = (100 * of if told else math.nan for of in both)
    outside = exposure(run)
    return {
        "verdict": run.verdict,
        "on_accuracy": told >= SHORTEST and not lacking,
        "evaluations": len(evals),
        "steps": _steps(run),
        "untrained": values.iloc[0] if told else math.nan,
        "level": level,
        "best": best,
        "dips": len(found),
        "lost_steps": run.accuracy.steps_in_dips,
        "exposure": outside,
        "dip_rate": 1000 * len(found) / outside if outside > 0 else math.nan,
        "lost_points": best - level,
    }


def exposure(run: Diagnosis) -> int:
    """Return the steps outside of dips, from the first evaluation to the last."""
    return _steps(run) - run.accuracy.steps_in_dips


def _steps(run: Diagnosis) -> int:
    steps = run.accuracy.evals["step"]
    return int(steps.iloc[-1] - steps.iloc[0]) if len(steps) else 0
