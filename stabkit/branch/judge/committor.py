"""How often the event comes back from each begin step after a nudge of one rounding."""

import pandas as pd

from stabkit.branch.judge.exact_tests import Share, share_interval

CERTAIN = 0.9  # the share of placebos from which on the event is committed


def share_of(branches: pd.DataFrame) -> Share:
    """Return how many branches of a table repeat the event."""
    return Share(int(branches["event"].sum()), len(branches))


def committor(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a begin step: begin, events, placebos, share, and its exact interval.

    `table`: rows of `branch_table`.
    """
    rows = []
    for begin, branches in table[table["kind"] == "placebo"].groupby("begin"):
        share = share_of(branches)
        rows.append((begin, *share, share.value, *share_interval(share)))
    return pd.DataFrame(rows, columns=["begin", "events", "placebos", "share", "low", "high"])


def commit_step(shares: pd.DataFrame) -> int | None:
    """Return the first begin step from which on the share stays at CERTAIN or more; None: never.

    `shares`: rows of `committor`. The step lies between this begin and the one before it.
    """
    found = None
    for row in shares.sort_values("begin", ascending=False).itertuples():
        if row.share < CERTAIN:
            break
        found = int(row.begin)
    return found


def commit_words(shares: pd.DataFrame) -> str:
    """Say from which step on a nudge hardly ever prevents the event, as far as it was tried."""
    steps = shares["begin"].sort_values().tolist()
    found = commit_step(shares)
    if found is None:
        return f"not committed at step {steps[-1]}: nudges still change whether it comes"
    if found == steps[0]:
        return f"committed at step {found} or before; no earlier begin was tried"
    before = steps[steps.index(found) - 1]
    return f"committed between steps {before} and {found}: after it a nudge hardly ever prevents it"
