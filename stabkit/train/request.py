"""What is refused before a training begins."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from stabkit.config import ConfigError, RunConfig, differences, missing_data
from stabkit.monitor.ranks import world_size
from stabkit.rundir import RunBusyError, RunDir, Status, claim_for_run
from stabkit.train.device import check_device, prepare_device
from stabkit.train.exactness import check_resume, choose_threads
from stabkit.train.parallel.reduce import own_rows
from stabkit.train.refusals import DataRefusedError

T = TypeVar("T")


class Start(NamedTuple):
    """What the run's folder decides about a training that is to begin or to go on there."""

    status: Status | None  # the last one
    threads: int
    facts: Mapping[str, Any]  # for the log of a resume


def check_request(config: RunConfig, where: str) -> None:
    """Raise ConfigError with every problem that can be seen without reading data."""
    problems = [
        problem
        for check in (lambda: _check_device(config), lambda: own_rows(config.train.batch))
        if (problem := _problem(check)) is not None
    ]
    if problem := missing_data(config):
        problems.append(problem)
    if world_size() > 1 and "curvature" in config.runtime.signals:
        problems.append(
            "runtime.signals: curvature needs the loss of all processes together; it can be "
            "measured by a single process only"
        )
    if problems:
        raise ConfigError(where, problems)


def look_into(config: RunConfig, rundir: RunDir, allow_inexact: bool) -> Start:
    """Check that this run may begin or go on in its folder. Changes nothing.

    Raises ForeignFolderError when the folder is not that of this run, RunBusyError when another
    process is writing there, and InexactResumeError unless the run would go on exactly or
    `allow_inexact` is given.
    """
    status = claim(config, rundir)
    if is_done(status):
        return Start(status, 0, {})
    if config.branch and not rundir.checkpoint_file.exists():
        raise ConfigError(
            str(rundir.path),
            [
                "a branch begins with a state of its parent, and there is none; `stabkit branch` "
                "makes it"
            ],
        )
    check_free(rundir)
    threads = choose_threads(config, rundir)
    facts = check_resume(config_with_threads(config, threads), rundir, allow_inexact)
    return Start(status, threads, facts)


def claim(config: RunConfig, rundir: RunDir) -> Status | None:
    """Return the run's last status; raise ForeignFolderError when the folder is not of this run."""
    claim_for_run(rundir, lambda file: differences(file, config))
    return rundir.last_status()


def check_free(rundir: RunDir) -> None:
    """Raise RunBusyError when another process is writing there, before any data is read."""
    if rundir.is_busy():
        raise RunBusyError(f"{rundir.path}: another process is writing here")


def is_done(status: Status | None) -> bool:
    return status is not None and status.state == "done"


def config_with_threads(config: RunConfig, threads: int) -> RunConfig:
    runtime = config.runtime.model_copy(update={"threads": threads})
    return config.model_copy(update={"runtime": runtime})


def as_request(act: Callable[[], T], where: str) -> T:
    """Return `act()`; raise its ValueError, which the settings caused, as ConfigError."""
    try:
        return act()
    except ValueError as error:
        raise ConfigError(where, [str(error)]) from None


def as_data(act: Callable[[], T], where: str) -> T:
    """Return `act()`; raise its ValueError, which the data caused, as DataRefusedError."""
    try:
        return act()
    except ValueError as error:
        raise DataRefusedError(where, str(error)) from error


def _check_device(config: RunConfig) -> None:
    check_device(config.runtime)
    prepare_device(config.runtime, config.compute)


def _problem(check: Callable[[], Any]) -> str | None:
    try:
        check()
    except ValueError as error:
        return str(error)
    return None
