"""How far a training is, in `status.json`: written as it goes, and at the end."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stabkit.config import RunConfig
from stabkit.monitor.ranks import rank
from stabkit.rundir import RunDir, Status
from stabkit.rundir import State as RunState
from stabkit.train.alerts import Alerts


class Progress:
    """Keeps `status.json` alive: at most once a second, and at the end."""

    def __init__(
        self,
        config: RunConfig,
        rundir: RunDir,
        first: int,
        chance: float,
        is_ours: Callable[[], bool],
        lacking: list[str],
    ) -> None:
        self._is_ours = is_ours
        self._lacking = lacking
        self.rundir, self.steps, self.batch = rundir, config.train.steps, config.train.batch
        self._alerts = Alerts(rundir, chance) if rank() == 0 else None
        self._knn: float | None = None
        self._began, self._first = time.monotonic(), first
        self._written = float("-inf")
        self.report(first)

    def evaluated(self, step: int, correct: NDArray[np.bool_]) -> None:
        self._knn = float(correct.mean())
        if self._alerts is not None:
            self._alerts.add(step, correct)

    def report(self, step: int) -> None:
        if not self._is_ours():
            raise FileNotFoundError(f"{self.rundir.path}: the run's folder was deleted or moved")
        now = time.monotonic()
        if rank() != 0 or now - self._written < 1.0:
            return
        self._written = now
        self.rundir.write_status(self.status("running", step, rows_missing(self._lacking)))

    def status(self, state: RunState, step: int, reason: str | None) -> Status:
        seconds = time.monotonic() - self._began
        done = step - self._first
        rate = self.batch * done / seconds if seconds else None
        eta = (self.steps - step) * seconds / done if done else None
        return Status(
            state,
            step,
            self.steps,
            images_per_s=rate,
            eta_s=eta,
            knn=self._knn,
            reason=reason,
            events=self._alerts.counts if self._alerts is not None else {},
        )


def rows_missing(lacking: list[str]) -> str | None:
    return f"rows are missing: {'; '.join(lacking)}" if lacking else None
