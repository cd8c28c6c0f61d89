"""What the sentences on runs share: how a run is named, and which of its events is the largest."""

import math
from collections.abc import Callable
from numbers import Real

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis

NAMED = 3  # runs of one kind; more are counted


def seed_text(seed: object) -> str:
    if isinstance(seed, Real):
        return f"{seed:.0f}" if math.isfinite(seed) else "-"
    return "-" if seed is None else str(seed)


def named(row: pd.Series) -> str:
    return f"{row['cell']}" + ("" if pd.isna(row["seed"]) else f", seed {seed_text(row['seed'])}")


def largest(
    rows: pd.DataFrame,
    ordered: list[Diagnosis],
    events: Callable[[Diagnosis], pd.DataFrame],
    size: str,
) -> tuple[pd.Series, Diagnosis, pd.Series]:
    """Return the row of the run with the largest of these events, the run, and the event."""
    where, run = max(
        ((row, ordered[int(str(i))]) for i, row in rows.iterrows()),
        key=lambda pair: float(events(pair[1])[size].max()),
    )
    found = events(run)
    return where, run, found.loc[found[size].idxmax()]
