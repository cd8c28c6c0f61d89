"""What is refused before a training begins."""

from collections.abc import Callable
from typing import Any, TypeVar

from stabkit.config import ConfigError, RunConfig, differences, missing_data
from stabkit.monitor.ranks import world_size
from stabkit.rundir import RunBusyError, RunDir, Status, claim_for_run
from stabkit.train.device import check_device, prepare_device
from stabkit.train.parallel.reduce import own_rows

T = TypeVar("T")


def check_request(config: RunConfig, where: str) -> None:
    """Raises ConfigError with everything that can be seen to be wrong without reading data."""
    problems = [
        problem
        for ask in (lambda: _device(config), lambda: own_rows(config.train.batch))
        if (problem := _problem(ask)) is not None
    ]
    if problem := missing_data(config):
        problems.append(problem)
    if world_size() > 1 and "curvature" in config.runtime.signals:
        problems.append(
            "runtime.signals: curvature needs the loss, which is that of all processes together; "
            "it can be measured by a single process only"
        )
    if problems:
        raise ConfigError(where, problems)


def _device(config: RunConfig) -> None:
    check_device(config.runtime)
    prepare_device(config.runtime, config.compute)


def as_request(act: Callable[[], T], where: str) -> T:
    """What `act` makes of the settings alone; its ValueError as ConfigError."""
    try:
        return act()
    except ValueError as error:
        raise ConfigError(where, [str(error)]) from None


def claimed(config: RunConfig, rundir: RunDir) -> Status | None:
    """The run's last status.

    Raises ForeignFolderError when the folder is not that of this run.
    """
    claim_for_run(rundir, lambda file: differences(file, config))
    return rundir.last_status()


def check_free(rundir: RunDir) -> None:
    """Raises RunBusyError when another process is at work there, before any data is read."""
    if rundir.is_busy():
        raise RunBusyError(f"{rundir.path}: another process is writing here")


def _problem(ask: Callable[[], Any]) -> str | None:
    try:
        ask()
    except ValueError as error:
        return str(error)
    return None
