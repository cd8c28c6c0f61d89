"""Who records a run of several processes: the first one; the others only compute with it."""

from typing import Self

from torch import Tensor

from stabkit.monitor.monitor import Monitor


class Silent:
    """Take the Monitor's place in every process but the first, and record nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def log(self, **values: Tensor | float) -> None:
        pass

    def _log_knn(self, *evaluation: object, **facts: object) -> None:
        pass

    def flush(self) -> None:
        pass


Recorder = Monitor | Silent
