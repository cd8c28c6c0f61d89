"""What the verbs share: the error of a wrong request, and the runs that a request names."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stabkit.rundir import RunDir, is_of_monitor

if TYPE_CHECKING:
    from stabkit.analyze.diagnoses import Diagnoses
    from stabkit.store.reader import StoredRuns


class RequestError(Exception):
    """The request was wrong; the message says what would be right."""


def is_speaker() -> bool:
    """Return whether this process prints: of several that torchrun started only the first does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def open_runs(folder: Path, shown: Path | None = None) -> "StoredRuns":
    """Open the runs below a folder, named `shown` in messages. Raises RequestError without any."""
    from stabkit.store.reader import load  # pandas takes a second to import

    runs = load(folder)
    if not len(runs):
        from stabkit.convert.sources import other_logs

        others = other_logs(folder)
        hint = f", but logs of other tools: {others}" if others else ""
        raise RequestError(f"{folder}: no run folder in it or below it{hint}")
    return runs if shown is None else replace(runs, path=shown)


def diagnose_runs(runs: "StoredRuns", metric: str | None, processes: int = 1) -> "Diagnoses":
    """Return `diagnose` of the runs. Raises RequestError if none has evaluations of `metric`."""
    from stabkit.analyze.diagnoses import UnknownMetricError, diagnose

    try:
        return diagnose(runs, processes, metric)
    except UnknownMetricError as error:
        raise RequestError(f"--metric {metric}: {error}") from None


def open_own(folder: Path, instead: str = "") -> RunDir:
    """Open a run that `stabkit train` or `stabkit sweep` made.

    Raises RequestError for another folder, which tells what to do `instead`.
    """
    rundir = RunDir(folder)
    file = rundir.config_file
    if not file.is_file():
        raise RequestError(f"{folder}: no run of `stabkit train`, it has no config.yaml{instead}")
    if is_of_monitor(file):
        raise RequestError(
            f"{folder}: no run of `stabkit train`: a Monitor recorded a loop of your own here, and "
            f"keeps neither its weights nor its data{instead}"
        )
    return rundir


def open_trained(folder: Path) -> RunDir:
    """Open a run that has a checkpoint. Raises RequestError."""
    rundir = open_own(folder)
    if not rundir.checkpoint_file.is_file():
        raise RequestError(f"{folder}: has no checkpoint yet ({rundir.checkpoint_file})")
    return rundir
