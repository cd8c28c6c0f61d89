"""What the verbs share: a wrong request, and the runs a request names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import stabkit
from stabkit.rundir import RunDir

if TYPE_CHECKING:
    from stabkit.store.reader import Runs


class RequestError(Exception):
    """The request was wrong; the message says what would be right."""


def speaks() -> bool:
    """Whether this is the one of torchrun's processes that prints; a single process does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def loaded(folder: Path) -> "Runs":
    runs = stabkit.load(folder)
    if not len(runs):
        raise RequestError(f"{folder}: no run folder in it or below it")
    return runs


def trained(folder: Path) -> RunDir:
    rundir = RunDir(folder)
    if not rundir.config_file.is_file():
        raise RequestError(f"{folder}: not a run folder, it has no {rundir.config_file.name}")
    if not rundir.checkpoint_file.is_file():
        raise RequestError(f"{folder}: has no checkpoint yet ({rundir.checkpoint_file})")
    return rundir
