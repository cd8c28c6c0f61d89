"""One word for how a run went."""

import pandas as pd

from stabkit.detect.dips import SHORTEST

VERDICTS = ("diverged", "collapsed", "unstable", "bursts", "unknown", "stable")  # worst first
UNSTABLE = VERDICTS[:3]


def verdict(
    nonfinite: int, num_collapses: int, num_evals: int, num_falls: int, num_bursts: int
) -> str:
    """`num_falls`: dips and drifts; the other numbers are of what their names say."""
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
    """The row of the worst run."""
    return worst_first(table).iloc[0]


def worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """In order: diverged before collapsed before the deepest dip."""
    rank = table["verdict"].map({name: i for i, name in enumerate(UNSTABLE)}).fillna(len(UNSTABLE))
    order = pd.DataFrame({"rank": rank, "deepest": -table["deepest"], "lost": -table["lost_steps"]})
    return table.loc[order.sort_values(["rank", "deepest", "lost"], kind="stable").index]
