"""What a run's record tells beside its status: the curve of its accuracy, and its verdict."""

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from stabkit.rundir import LeftOutWarning
from stabkit.store.schema import METRIC
from stabkit.sweep.status import ENDED, Row

JUDGED = 20  # runs; each verdict takes some tenths of a second
CURVE = 12  # characters of a curve
SIGNS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Look:
    """The accuracies of a run so far, and the verdict, once it is done and was judged."""

    curve: tuple[float, ...] = ()
    verdict: str | None = None


class Looks:
    """Look into the record of each run from time to time, and once more when it has ended.

    Reading a run's table takes at most a fiftieth of the time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Look]] = {}
        self._due: dict[str, float] = {}  # when the record of a run may be read again
        self._judged = 0

    def of(self, row: Row) -> Look:
        """Return the look of a run at present."""
        if not row.path:
            return Look()
        state, look = self._known.get(row.path, ("", Look()))
        if row.state in ENDED and look.verdict is not None:
            pass  # a verdict stays
        elif row.state in ENDED and self._judged < JUDGED:
            if state not in ENDED:
                self._judged += 1
                look = _judged(row.path)
        elif row.step and time.monotonic() >= self._due.get(row.path, -math.inf):
            import stabkit.store.reader  # noqa: F401 (it takes seconds once, which do not count)

            began = time.monotonic()
            look = Look(_curve(row.path))
            self._due[row.path] = began + max(5.0, 50 * (time.monotonic() - began))
        self._known[row.path] = row.state, look
        return look


def sparkline(look: Look, row: Row, low: float, high: float) -> str:
    """Return a curve as signs of eight heights from `low` to `high`, as long as the run went.

    Each sign is the lowest value of its part of the run, so that a short dip shows.
    """
    values = look.curve
    if not values or not high > low:
        return ""
    share = row.step / row.steps if row.steps else 1.0
    count = min(len(values), max(1, round(CURVE * share)))
    parts = [
        values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)
    ]
    last = len(SIGNS) - 1
    return "".join(SIGNS[round(last * (min(part) - low) / (high - low))] for part in parts)


def _curve(path: str) -> tuple[float, ...]:
    """Return the held-out kNN accuracies on record; none if they cannot be read."""
    try:
        from stabkit.store.reader import StoredRun  # pandas takes a second to import

        return tuple(StoredRun(Path(path)).evals(METRIC)["value"].tolist())
    except Exception:  # no damaged record may end a sweep that is shown
        return ()


def _judged(path: str) -> Look:
    """Return curve and verdict of a run; without them if its record cannot be read."""
    try:
        from stabkit.analyze.diagnosis import Diagnosis
        from stabkit.store.reader import StoredRun

        found = Diagnosis(StoredRun(Path(path)))
        with warnings.catch_warnings():  # what was left out is said by `analyze`
            warnings.simplefilter("ignore", LeftOutWarning)
            return Look(tuple(found.accuracy.evals["value"].tolist()), found.verdict)
    except Exception:
        return Look()
