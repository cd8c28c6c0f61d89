"""How far a training is, in `status.json`: written while it goes on, and at the end."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stabkit.config import RunConfig
from stabkit.monitor.ranks import rank
from stabkit.rundir import State as RunState
from stabkit.rundir import Status, count_parts, missing_rows
from stabkit.store.gaps import gaps
from stabkit.store.reader import StoredRun
from stabkit.train.alerts import Alerts
from stabkit.train.held_run import HeldRun
from stabkit.train.keeping import pin_before


class Progress:
    """Keep `status.json` alive: write it at most once a second, and at the end.

    Rows of earlier steps that are no longer on disk are named in the log and in the status.
    The run goes on without them, since only a run from the start could make them again.
    """

    def __init__(self, config: RunConfig, held: HeldRun, first: int, chance: float) -> None:
        """`first`: the step that the training begins at. `chance`: accuracy of a guess."""
        self._held, self._rundir = held, held.rundir
        self._steps, self._batch = config.end, config.train.batch
        pin = partial(pin_before, config, self._rundir)
        self._alerts = Alerts(self._rundir, chance, pin) if rank() == 0 else None
        self._knn: float | None = None
        self._missing: list[str] = []
        self._find_missing(first)
        self._began, self._first = time.monotonic(), first
        self._written = float("-inf")
        self.report(first)

    def evaluated(self, step: int, correct: NDArray[np.bool_]) -> None:
        """Take in an evaluation of held-out kNN: for each query, whether it was `correct`."""
        self._knn = float(correct.mean())
        if self._alerts is not None:
            self._alerts.add(step, correct)

    def report(self, step: int) -> None:
        """Write that `step` steps are done. Raises FileNotFoundError if the folder is gone."""
        self._held.check()
        now = time.monotonic()
        if rank() != 0 or now - self._written < 1.0:
            return
        self._written = now
        self._rundir.write_status(self.status("running", step, missing_rows(self._missing)))

    def status(self, state: RunState, step: int, reason: str | None) -> Status:
        seconds = time.monotonic() - self._began
        done = step - self._first
        return Status(
            state,
            step,
            self._steps,
            images_per_s=self._batch * done / seconds if seconds else None,
            eta_s=(self._steps - step) * seconds / done if done else None,
            knn=self._knn,
            reason=reason,
            events=self._alerts.counts if self._alerts is not None else {},
            first=self._first,
        )

    def close(self, status: Status) -> Status:
        """Write the last status and event, once all rows are on disk, and return the status."""
        if rank() != 0:
            return status
        self._find_missing(status.step)
        if self._alerts is not None and status.state == "done":
            self._alerts.finish(status.step)
            status = replace(status, events=self._alerts.counts)
        reasons = [reason for reason in (status.reason, missing_rows(self._missing)) if reason]
        parts = count_parts(self._rundir.path)
        status = replace(status, reason="; ".join(reasons) or None, parts=parts)
        self._rundir.append_entry(status.state, status.step, reason=status.reason)
        self._rundir.write_status(status)
        return status

    def _find_missing(self, step: int) -> None:
        """Look for rows that are missing before `step`; put a change into the log."""
        if rank() != 0:
            return
        before, self._missing = (
            self._missing,
            gaps(StoredRun(self._rundir.path).keeping(), end=step),
        )
        if self._missing != before:
            self._rundir.append_entry("rows_missing", step, gaps=self._missing)
