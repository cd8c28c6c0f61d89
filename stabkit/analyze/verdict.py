"""Judge how a run went, in one word."""

import pandas as pd

from stabkit.detect.dips import SHORTEST

VERDICTS = ("diverged", "collapsed", "unstable", "bursts", "unknown", "stable")  # worst first
UNSTABLE = VERDICTS[:3]


def verdict(
    nonfinite: int, num_collapses: int, num_evals: int, num_falls: int, num_bursts: int
) -> str:
    """Return the verdict on a run, from counts of what was found.

    `num_falls` counts dips and drifts together.
    """
    if nonfinite:
        return "diverged"
    if num_collapses:
        return "collapsed"
    if num_falls:
        return "unstable"
    if num_evals < SHORTEST:
        return "unknown"
    return "bursts" if num_bursts else "stable"


def worst_of(table: pd.DataFrame) -> pd.Series:
    """Return the row of the worst run."""
    return worst_first(table).iloc[0]


def worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """Order the rows of `run_table`: diverged, then collapsed, then by the deepest dip."""
    rank = table["verdict"].map({name: i for i, name in enumerate(UNSTABLE)}).fillna(len(UNSTABLE))
    order = pd.DataFrame({"rank": rank, "deepest": -table["deepest"], "lost": -table["lost_steps"]})
    return table.loc[order.sort_values(["rank", "deepest", "lost"], kind="stable").index]
