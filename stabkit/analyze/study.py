"""What the analysis of every study shares: levels of runs, published values beside them, claims."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stabkit.analyze.claims import Claim, mean_above_zero
from stabkit.analyze.events import dips
from stabkit.analyze.summary import aligned
from stabkit.store.reader import Runs, load

LAST = 20  # evaluations whose median is a run's level: one alone is noisy, or inside a dip


def study_runs(default: str) -> Runs:
    """The runs of the folder named on the command line, or of `default` (in a notebook)."""
    given = sys.argv[1] if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir() else default
    return load(given)


def levels(runs: Runs, metric: str = "knn_heldout") -> pd.DataFrame:
    """One row a run: run, seed, every setting that differs, level (in points), dips.

    `level` is the median of the last evaluations, in points (100 times the accuracy).
    """
    rows = []
    for run in runs:
        values = run.evals(metric)["value"]
        settings = {key: run.settings.get(key) for key in runs.factors()}
        level = 100 * values.tail(LAST).median()
        row = {"run": run.name, "seed": run.settings.get("seed", 0), "level": level}
        rows.append(row | settings | {"dips": len(dips(run)) if len(values) else 0})
    return pd.DataFrame(rows)


def beside_published(
    table: pd.DataFrame, factor: str, published: Mapping[Any, float], measure: str
) -> str:
    """Text: each value of `factor` with our mean level and dips, and the published accuracy.

    `published` is keyed by the value the paper used, in the order of the values here: scales
    differ in their numbers, so rows stand side by side by rank where the values differ.
    """
    ours = table.groupby(factor, sort=False).agg(
        level=("level", "mean"), runs=("run", "count"), dips=("dips", "sum")
    )
    lines = [[factor, measure, "runs", "dips", "paper", "paper's linear probe"]]
    for i in range(max(len(ours), len(published))):
        here, there = ["", "", "", ""], ["", ""]
        if i < len(ours):
            row = ours.iloc[i]
            here = [str(ours.index[i]), f"{row['level']:.1f}", f"{row['runs']:.0f}"]
            here.append(f"{row['dips']:.0f}")
        if i < len(published):
            value = list(published)[i]
            there = [str(value), f"{published[value]:.1f}"]
        lines.append([*here, *there])
    return aligned(lines)


def higher(table: pd.DataFrame, factor: str, better: Any, worse: Any, text: str) -> Claim:
    """The claim that runs at `better` end higher than at `worse`, paired over all else."""
    others = [c for c in table.columns if c not in ("run", "level", "dips", factor)]
    arms = [table[table[factor] == value].set_index(others)["level"] for value in (better, worse)]
    return mean_above_zero(text, (arms[0] - arms[1]).dropna().tolist(), "points of kNN")
