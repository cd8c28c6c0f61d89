"""Cells against the folders that exist: what is done, what runs, what is left to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from stabkit.sweep.grid import Cell, Sweep
from stabkit.sweep.queue import Job
from stabkit.sweep.submissions import read_submitted
from stabkit.yamlio import dump_yaml


@dataclass(frozen=True)
class Task:
    """A cell, its folder and how it stands there; `job` is the SLURM job that has it, if any."""

    cell: Cell
    rundir: RunDir
    standing: Standing
    job: str | None = None


def reconcile(
    cells: Sequence[Cell], folder: Path, jobs: Mapping[str, Job] | None = None
) -> list[Task]:
    """In the order of the cells. Reads only.

    `jobs`: those that SLURM holds, by id. None when it cannot be asked: then the last job of a
    run that has not ended is taken to be alive, since two must never train it.
    """
    tasks = []
    names = _names(folder)
    for cell in cells:
        rundir = RunDir(folder / names.get(cell.run_id, cell.folder))
        standing = rundir.standing()
        submitted = None if standing in ("missing", "done") else read_submitted(rundir)
        if submitted is None:
            tasks.append(Task(cell, rundir, standing))
            continue
        alive = _alive(submitted.job_id, standing, jobs)
        if standing == "running" and not alive and not rundir.is_busy():
            standing = "lost"  # its heartbeat is young, but the job it came from is gone
        tasks.append(Task(cell, rundir, standing, submitted.job_id if alive else None))
    return tasks


def _alive(job_id: str, standing: Standing, jobs: Mapping[str, Job] | None) -> bool:
    if jobs is None:
        return standing != "failed"
    job = jobs.get(job_id)
    # the job of a failed run may be on its way out; or it was requeued by SLURM, and comes back
    return job is not None and (standing != "failed" or job.state == "PENDING")


def to_do(tasks: Sequence[Task], retry_failed: bool) -> list[Task]:
    """What a launch starts: all that has not ended and nobody works on; failed ones if asked.

    Not those lost to wrong clocks alone, which may be alive.
    """
    wanted = {"missing", "waiting", "preempted", "lost"} | ({"failed"} if retry_failed else set())
    return [
        task
        for task in tasks
        if task.standing in wanted
        and task.job is None
        and not (task.standing == "lost" and task.rundir.is_ahead())
    ]


def removed(cells: Sequence[Cell], folder: Path) -> list[RunDir]:
    """Runs in the sweep's folder that are no cell of it (any more)."""
    known = {cell.run_id for cell in cells}
    return [RunDir(folder / name) for id_, name in _names(folder).items() if id_ not in known]


def _names(folder: Path) -> dict[str, str]:
    """The run folders there, by run id. The words before it change with what a request varies."""
    return {run: names[-1] for run, names in _folders_of(folder).items()}


def _folders_of(folder: Path) -> dict[str, list[str]]:
    """All of them by run id, in name order: a copy has the id of the run that was copied."""
    found: dict[str, list[str]] = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else []:
        if RunDir(child).config_file.exists():
            found.setdefault(child.name.rpartition("-")[2], []).append(child.name)
    return found


def refuse_foreign(sweep: Sweep, folder: Path) -> None:
    """Raises ConfigError that names every cell whose folder holds something else than its run, and
    every cell that has two folders."""
    problems = []
    try:
        claim_for_sweep(folder)
    except ForeignFolderError as error:
        raise ConfigError(sweep.name, [str(error)]) from None
    names = _folders_of(folder)
    for cell in sweep.cells:
        there = names.get(cell.run_id, [cell.folder])
        if len(there) > 1:
            problems.append(f"{folder}: {' and '.join(there)} are one run; move all but one away")
        try:
            claim_cell(cell, RunDir(folder / there[-1]))
        except (ForeignFolderError, ConfigError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(sweep.name, problems)


def claim_cell(cell: Cell, rundir: RunDir) -> None:
    """Raises ForeignFolderError or ConfigError when the folder is not that of the cell's run."""
    claim_for_run(rundir, lambda file: differences(file, cell.config))


def prepare(task: Task, threads: int) -> None:
    """Write the run's configuration and that it waits.

    Threads, once chosen, stay: other threads, other last bits. Raises ForeignFolderError when the
    folder is not that of the run.
    """
    claim_cell(task.cell, task.rundir)
    config = task.cell.config
    if not task.rundir.config_file.exists():
        if config.runtime.threads is None:
            runtime = config.runtime.model_copy(update={"threads": threads})
            config = config.model_copy(update={"runtime": runtime})
        atomic_write(task.rundir.config_file, save_config(config).encode())
    if task.standing in ("missing", "failed", "lost"):
        before = task.rundir.last_status() or Status("waiting", steps=config.train.steps)
        task.rundir.write_status(replace(before, state="waiting", reason=None))


def write_cells(sweep: Sweep, folder: Path) -> None:
    """`cells.yaml`: what is special about each run folder, in the sweep's order."""
    names = _names(folder)
    cells = {names.get(c.run_id, c.folder): dict(c.settings) for c in sweep.cells}
    atomic_write(folder / "cells.yaml", dump_yaml(cells).encode())


def count_words(tasks: Sequence[Task], todo: Sequence[Task]) -> str:
    """How a sweep stands before a launch, in one line."""
    done = sum(task.standing == "done" for task in tasks)
    failed = sum(task.standing == "failed" and task not in todo for task in tasks)
    busy = len(tasks) - done - failed - len(todo)
    words = [f"{len(tasks)} cells", f"{done} done"]
    words += [f"{busy} running or queued"] * bool(busy)
    words += [f"{failed} failed (--retry failed runs them again)"] * bool(failed)
    return ", ".join([*words, f"{len(todo)} to run"])


def print_removed(sweep: Sweep, folder: Path) -> None:
    if others := removed(sweep.cells, folder):
        print(
            f"  {len(others)} runs here are no cells of this request; --cancel-removed ends them:"
        )
        for rundir in others:
            print(f"    {rundir.path.name}")
