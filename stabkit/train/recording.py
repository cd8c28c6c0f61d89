"""Who records a run that spans several processes: the first alone; the others compute with it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from torch import Tensor

from stabkit.monitor.monitor import Monitor
from stabkit.rundir import RunDir
from stabkit.train.parallel.agree import of_first


@contextmanager
def hold(rundir: RunDir) -> Iterator[None]:
    """`rundir.lock()`, held by the first process for all of them.

    When another run holds it, RunBusyError there and PeerError on the others.
    """
    with ExitStack() as stack:
        of_first(lambda: stack.enter_context(rundir.lock()))
        yield


class Silent:
    """What every process but the first has in the Monitor's place."""

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
