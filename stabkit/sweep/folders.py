"""The folders of a sweep's runs: which run each belongs to, and what is written before a start."""

import os
from dataclasses import replace
from pathlib import Path

from stabkit.config import ConfigError, differences, save_config
from stabkit.rundir import (
    ForeignFolderError,
    RunDir,
    Standing,
    Status,
    atomic_write,
    claim_for_run,
    claim_for_sweep,
)
from stabkit.sweep.grid import PlannedRun, Sweep
from stabkit.yamlio import dump_yaml


def folder_by_id(folder: Path) -> dict[str, str]:
    """Return the names of the run folders by run id.

    The words before the id in a name depend on what a request varies, so names are found by id.
    """
    return {run_id: names[-1] for run_id, names in _folders_by_id(folder).items()}


def _folders_by_id(folder: Path) -> dict[str, list[str]]:
    """Return all names by run id, in name order: a copied folder has the id of the original."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if RunDir(folder / name).config_file.exists():
            found.setdefault(name.rpartition("-")[2], []).append(name)
    return found


def refuse_foreign(sweep: Sweep, folder: Path) -> None:
    """Raise ConfigError that names every run with a foreign folder, or with two folders."""
    problems = []
    try:
        claim_for_sweep(folder)
    except ForeignFolderError as error:
        raise ConfigError(sweep.name, [str(error)]) from None
    names = _folders_by_id(folder)
    for run in sweep.runs:
        there = names.get(run.run_id, [run.folder])
        if len(there) > 1:
            problems.append(f"{folder}: {' and '.join(there)} are one run; move all but one away")
        try:
            claim_folder(run, RunDir(folder / there[-1]))
        except (ForeignFolderError, ConfigError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(sweep.name, problems)


def claim_folder(run: PlannedRun, rundir: RunDir) -> None:
    """Raise ForeignFolderError or ConfigError if the folder holds anything but this run."""
    claim_for_run(rundir, lambda file: differences(file, run.config))


def write_waiting(run: PlannedRun, rundir: RunDir, standing: Standing, threads: int) -> None:
    """Write the run's configuration, and the status that it waits.

    A run that has a configuration keeps it, and with it its number of threads: another number
    would change the last bits. Raises ForeignFolderError if the folder holds anything else.
    """
    claim_folder(run, rundir)
    config = run.config
    if not rundir.config_file.exists():
        if config.runtime.threads is None:
            runtime = config.runtime.model_copy(update={"threads": threads})
            config = config.model_copy(update={"runtime": runtime})
        atomic_write(rundir.config_file, save_config(config).encode())
    if standing in ("missing", "failed", "lost"):
        before = rundir.last_status() or Status("waiting", config.begin, config.end)
        rundir.write_status(replace(before, state="waiting", reason=None))


def write_index(sweep: Sweep, folder: Path) -> None:
    """Write `cells.yaml`: the settings that vary of each run folder, in the sweep's order."""
    names = folder_by_id(folder)
    settings = {names.get(run.run_id, run.folder): dict(run.settings) for run in sweep.runs}
    atomic_write(folder / "cells.yaml", dump_yaml(settings).encode())
