"""The runs of a sweep against the folders that exist: what is done, what runs, what is to do.

Nothing is written here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabkit.printing import counted
from stabkit.rundir import RunDir, Standing
from stabkit.sweep.folders import folder_by_id
from stabkit.sweep.grid import PlannedRun, Sweep
from stabkit.sweep.queue import Job
from stabkit.sweep.standing import judge
from stabkit.sweep.submissions import read_submitted


@dataclass(frozen=True)
class Task:
    """A run of a sweep, its folder and how it stands; `job` is the SLURM job that has it."""

    run: PlannedRun
    rundir: RunDir
    standing: Standing
    job: str | None = None


def reconcile(
    runs: Sequence[PlannedRun], folder: Path, jobs: Mapping[str, Job] | None = None
) -> list[Task]:
    """Return a task for each run, in order. `jobs` is what `judge` takes."""
    tasks = []
    names = folder_by_id(folder)
    for run in runs:
        rundir = RunDir(folder / names.get(run.run_id, run.folder))
        found = judge(rundir, read_submitted(rundir), jobs)
        tasks.append(Task(run, rundir, found.standing, found.job_id))
    return tasks


def to_do(tasks: Sequence[Task], retry_failed: bool) -> list[Task]:
    """Return what a launch starts: the runs that have not ended and that nobody works on.

    Failed runs are among them only if asked for. A run that counts as lost only because a clock is
    wrong is not: it may be alive.
    """
    wanted = {"missing", "waiting", "preempted", "lost"} | ({"failed"} if retry_failed else set())
    return [
        task
        for task in tasks
        if task.standing in wanted
        and task.job is None
        and not (task.standing == "lost" and task.rundir.is_ahead())
    ]


def removed(runs: Sequence[PlannedRun], folder: Path) -> list[RunDir]:
    """Return the run folders of the sweep that no longer belong to any of its runs."""
    known = {run.run_id for run in runs}
    return [RunDir(folder / name) for id_, name in folder_by_id(folder).items() if id_ not in known]


def count_words(tasks: Sequence[Task], todo: Sequence[Task]) -> str:
    """Say in one line how a sweep stands before a launch."""
    done = sum(task.standing == "done" for task in tasks)
    failed = sum(task.standing == "failed" and task not in todo for task in tasks)
    busy = len(tasks) - done - failed - len(todo)
    words = [counted(len(tasks), "run"), f"{done} done"]
    words += [f"{busy} running or queued"] * bool(busy)
    words += [f"{failed} failed (--retry failed runs them again)"] * bool(failed)
    return ", ".join([*words, f"{len(todo)} to run"])


def print_removed(sweep: Sweep, folder: Path) -> None:
    """Name the runs in the sweep's folder that are not part of this request."""
    if others := removed(sweep.runs, folder):
        print(
            f"  not part of this request: {counted(len(others), 'run')} here; "
            "--cancel-removed ends such jobs:"
        )
        for rundir in others:
            print(f"    {rundir.path.name}")
