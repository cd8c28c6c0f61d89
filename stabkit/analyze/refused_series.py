"""Go on where a detector refuses a series.

A LeftOutWarning names the series, and `refused` says why of the empty table that is returned.
"""

from collections.abc import Callable

import pandas as pd

from stabkit.rundir import left_out
from stabkit.store.reader import StoredRun


def attempt(
    run: StoredRun, what: str, find: Callable[[], pd.DataFrame], nothing: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Return what `find` finds; if it refuses the series, warn and return `nothing()`, marked."""
    try:
        return find()
    except ValueError as error:
        found = nothing()
        found.attrs["refused"] = refuse(run, str(error), what)
        return found


def refuse(run: StoredRun, why: str, what: str) -> str:
    """Warn that `what` is left out of the run, and return so without the run's name."""
    left_out(run.path, why, what)
    return f"{what} left out, {why}"


def refused(found: pd.DataFrame) -> str:
    """Return why a detector refused the series, or one of them; empty if it searched all."""
    return str(found.attrs.get("refused", ""))
