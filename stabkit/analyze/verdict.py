"""Judge how a run went, in one word."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `stabkit status` needs the words alone
    import pandas as pd

# worst first
VERDICTS = (
    *("diverged", "collapsed", "unstable"),
    *("bursts", "outlier", "stuck", "unknown", "stable"),
)
UNSTABLE = VERDICTS[:3]
DOUBTFUL = VERDICTS[3:6]  # no instability, and no clean bill either
UNNOTICED = "finished without any error, as if nothing had happened."  # of unstable runs


def verdict(
    *,
    judged: bool,
    lost: int = 0,
    collapses: int = 0,
    unstable_signs: int = 0,
    bursts: int = 0,
    outliers: int = 0,
    stuck: int = 0,
) -> str:
    """Return the verdict on a run, from counts of what was found.

    judged: whether anything was recorded in which a fault would have been found.
    lost: stretches of non-finite values, and losses that left for good.
    unstable_signs: dips and drifts of accuracy, spikes of the loss, and unrest of either.
    bursts: of gradients, if they stand out from the noise of the run; swells and growth
        included.
    outliers: single evaluations far below their neighbors; stuck: losses that never fell.
    """
    if lost:
        return "diverged"
    if collapses:
        return "collapsed"
    if unstable_signs:
        return "unstable"
    if not judged:
        return "unknown"
    if bursts:
        return "bursts"
    if outliers:
        return "outlier"
    return "stuck" if stuck else "stable"


def counted_verdicts(verdicts: Iterable[str]) -> str:
    """Return how many runs have each verdict, the worst first: `1 unstable, 2 with bursts`."""
    counts = Counter(verdicts)
    words = {"bursts": "with bursts", "outlier": "with outliers"}
    return ", ".join(f"{counts[v]:,} {words.get(v, v)}" for v in VERDICTS if v in counts)


def is_unstable(table: "pd.DataFrame") -> "pd.Series[bool]":
    """Return which runs count as unstable. One that is `unknown` is not among them."""
    return table["verdict"].isin(UNSTABLE)


def ended_well(table: "pd.DataFrame") -> int:
    """Return how many of the unstable runs came to their end without an error and finite."""
    return int(
        (is_unstable(table) & (table["state"] == "done") & (table["verdict"] != "diverged")).sum()
    )


def worst_of(table: "pd.DataFrame") -> "pd.Series":
    """Return the row of the worst run."""
    return worst_first(table).iloc[0]


def worst_first(table: "pd.DataFrame") -> "pd.DataFrame":
    """Order the rows of `run_table` by verdict, deepest dip, steps in dips and final accuracy."""
    import pandas as pd

    rank = table["verdict"].map(VERDICTS.index)
    worse = {"deepest": -table["deepest"], "lost": -table["lost_steps"], "level": table["level"]}
    order = pd.DataFrame({"rank": rank, **worse})
    return table.loc[order.sort_values([*order.columns], kind="stable").index]
