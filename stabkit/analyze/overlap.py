"""Leave out events that others cover, so that nothing is told twice."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

COVERED = 0.5  # share of the steps of an event from which on others tell it


def not_covered(events: pd.DataFrame, others: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the events of which no other event covers half of the steps.

    All have the columns onset and end; an end may be infinite.
    """
    kept = [
        not any(_covers(other, event) for frame in others for other in frame.itertuples())
        for event in events.itertuples()
    ]
    return events[pd.Series(kept, index=events.index, dtype=bool)]


def _covers(other: Any, event: Any) -> bool:
    shared = min(other.end, event.end) - max(other.onset, event.onset)
    return bool(shared >= COVERED * (event.end - event.onset))
