"""What the sentences on runs share: how a run is named, and which of its events is the largest."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from stabkit.analyze.cells import group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis

RunOfRow = Mapping[str, Diagnosis]  # by the index of `run_table`, in the order of its rows
BEFORE = 20  # values whose median is the level before a spike
NAMED = 3  # runs of one kind; more are counted


def run_of_row(runs: Diagnoses) -> RunOfRow:
    """Return the run of each row of `run_table`. Names may not tell runs apart; paths do."""
    return {str(run.path): run for cell in group_cells(runs) for run in cell.runs}


def seed_text(seed: object) -> str:
    if isinstance(seed, Real):
        return f"{seed:.0f}" if math.isfinite(seed) else "-"
    return "-" if seed is None else str(seed)


def named(row: pd.Series) -> str:
    return f"{row['cell']}" + ("" if pd.isna(row["seed"]) else f", seed {seed_text(row['seed'])}")


def still_up(run: Diagnosis, spike: "pd.Series | dict[Any, Any]") -> bool:
    """Return whether a loss is up, by a quarter of its spike or more, at its last finite value."""
    table = run.tables.scalars()
    named = table["name"].astype(str) == str(spike["first"]).split(", ")[0]
    loss = table[named & np.isfinite(table["value"])].set_index("step")["value"]
    if spike["end"] < loss.index[-1]:
        return False
    level = loss[loss.index < spike["onset"]].tail(BEFORE).median()
    return bool(loss.iloc[-1] - level >= (loss.loc[spike["onset"] :].max() - level) / 4)


def largest(
    rows: pd.DataFrame,
    of: RunOfRow,
    events: Callable[[Diagnosis], pd.DataFrame],
    size: str,
) -> tuple[pd.Series, Diagnosis, pd.Series]:
    """Return the row of the run with the largest of these events, the run, and the event."""
    where, run = max(
        ((row, of[str(i)]) for i, row in rows.iterrows()),
        key=lambda pair: float(events(pair[1])[size].max()),
    )
    found = events(run)
    return where, run, found.loc[found[size].idxmax()]
