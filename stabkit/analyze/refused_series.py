"""Go on where a detector refuses a series.

A LeftOutWarning names the series, and `refused` is true of the empty table that is returned.
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
        left_out(run.path, str(error), what)
        found = nothing()
        found.attrs["refused"] = True
        return found


def refused(found: pd.DataFrame) -> bool:
    """Return whether nothing was found because a detector refused the series, or one of them."""
    return bool(found.attrs.get("refused", False))
