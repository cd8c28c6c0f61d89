"""Keep the tables of the runs that were read last in memory, up to a number of bytes."""

from collections import OrderedDict
from pathlib import Path

from stabkit.store.reader import StoredRun

BUDGET = 256 * 2**20  # bytes; a run of 10,000 steps and 20 layers needs about 6 MiB


class Tables:
    """The tables of the runs that were used last, up to `budget` bytes."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._runs: OrderedDict[Path, StoredRun] = OrderedDict()  # ordered by last use
        self._sizes: dict[Path, int] = {}  # without the last run, whose tables are being read

    def of(self, run: StoredRun) -> StoredRun:
        """Return the run together with the tables that were read from it before."""
        if self._runs and (last := next(reversed(self._runs))) != run.path:
            self._sizes[last] = _size(self._runs[last])
            while sum(self._sizes.values()) > self.budget:
                oldest, _ = self._runs.popitem(last=False)
                del self._sizes[oldest]
        if run.path not in self._runs:
            self._runs[run.path] = kept = run.keeping()
            vars(kept)["settings"] = run.settings  # keep what was parsed
        self._sizes.pop(run.path, None)
        self._runs.move_to_end(run.path)
        return self._runs[run.path]


def _size(run: StoredRun) -> int:
    frames = (run._kept or {}).values()
    return sum(int(frame.memory_usage(deep=True).sum()) for frame in frames)
