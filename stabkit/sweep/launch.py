"""Run what is missing of a sweep on this machine, and report how it went."""

from collections.abc import Mapping
from pathlib import Path

from stabkit.config import ConfigError, missing_data
from stabkit.printing import counted
from stabkit.rundir import AHEAD, RunDir
from stabkit.sweep.display import live_status
from stabkit.sweep.folders import write_index
from stabkit.sweep.grid import Sweep
from stabkit.sweep.pool import ENDS, Outcome, make_slots, run_pool, visible_cpus, visible_gpus
from stabkit.sweep.queue import Job, SlurmError, live_jobs
from stabkit.sweep.reconcile import Task, count_words, print_removed, reconcile, to_do
from stabkit.sweep.standing import judge
from stabkit.sweep.status import row_reader
from stabkit.sweep.submissions import read_submitted


def print_plan(sweep: Sweep, folder: Path) -> None:
    """Print what would run, in order, and how each run stands now."""
    runs = counted(len(sweep.runs), "run")
    print(f"{sweep.name}: {runs} at scale {sweep.scale or 'default'} in {folder}")
    if sweep.published:
        print(f"  published: {sweep.published.measure} ({sweep.published.source})")
    for task in reconcile(sweep.runs, folder, jobs_or_none()):
        value = "" if task.run.published is None else f"  published {task.run.published:g}"
        job = f"  job {task.job}" if task.job else ""
        print(f"  {task.standing:<12}{task.rundir.path.name}{value}{job}")
    print_removed(sweep, folder)


def launch(sweep: Sweep, folder: Path, retry_failed: bool) -> int:
    """Run the sweep and return the exit code.

    0: every run is done. 1: a run failed, was stopped or goes on elsewhere. 2: a run could not go
    on as it was asked to. Raises, before anything starts, ConfigError when the data is not where it
    should be and RunBusyError when another launcher works on the sweep.
    """
    undone = [t.run.config for t in reconcile(sweep.runs, folder) if t.standing != "done"]
    problems = dict.fromkeys(problem for c in undone if (problem := missing_data(c)))
    if problems:
        raise ConfigError(sweep.name, list(problems))
    with RunDir(folder).lock():
        return _launch(sweep, folder, retry_failed)


def jobs_or_none() -> dict[str, Job] | None:
    """Return the jobs that SLURM holds, or None where it cannot be asked."""
    try:
        return live_jobs()
    except SlurmError:
        return None


def _launch(sweep: Sweep, folder: Path, retry_failed: bool) -> int:
    jobs = jobs_or_none()
    tasks = reconcile(sweep.runs, folder, jobs)
    todo = to_do(tasks, retry_failed)
    slots = make_slots([t.run.config for t in todo], visible_cpus(), visible_gpus())
    side = f", {min(len(slots), len(todo))} at a time" if todo else ""
    print(f"{sweep.name}: {count_words(tasks, todo)}{side}; in {folder}")
    if todo and any(task.run.slurm for task in todo):
        print("  the sweep asks for a SLURM cluster; this starts its runs on this machine")
    for task in tasks:
        if reason := _left_alone(task, jobs):
            print(f"  left alone, {reason}")
    print_removed(sweep, folder)
    others = [task for task in tasks if task not in todo]
    if not todo:
        return _exit_code(others, [])
    write_index(sweep, folder)
    for task in todo:  # a job that had the run is gone
        task.rundir.job_file.unlink(missing_ok=True)
    with live_status(row_reader([task.rundir for task in todo])) as tick:
        outcomes = run_pool(todo, slots, tick)
    _report(sweep, outcomes)
    return _exit_code(others, outcomes)


def _left_alone(task: Task, jobs: Mapping[str, Job] | None) -> str | None:
    """Say why a launch does not start a run that has not ended."""
    if task.standing == "running":
        return f"another process is running it: {task.rundir.path}"
    if task.standing == "lost" and task.rundir.is_ahead():
        return f"{AHEAD}: {task.rundir.path}"
    if task.job is None:
        return None
    if jobs is not None:
        return f"SLURM has it as job {task.job}: {task.rundir.path}"
    return (
        f"SLURM cannot be asked about it; if job {task.job} is gone, remove {task.rundir.job_file}"
    )


def _report(sweep: Sweep, outcomes: list[Outcome]) -> None:
    by_end: dict[str, list[Outcome]] = {end: [] for end in ENDS}
    for outcome in outcomes:
        by_end[outcome.end].append(outcome)
    for outcome in by_end["failed"]:
        print(f"failed: {outcome.task.rundir.path}\n    {outcome.status.reason}")
    for outcome in by_end["refused"]:
        print(f"refused, and left as it was: {outcome.task.rundir.path}\n    {outcome.refusal}")
    for outcome in by_end["going on"]:
        print(f"left alone: {outcome.task.rundir.path}\n    {outcome.status.reason}")
    for outcome in outcomes:
        if outcome.orphaned:
            print(f"its worker was killed, the run went on without: {outcome.task.rundir.path}")
    always = [f"{len(by_end[end])} {end}" for end in ("failed", "stopped")]
    others = [f"{len(by_end[end])} {end}" for end in ("refused", "going on") if by_end[end]]
    words = [f"{counted(len(by_end['done']), 'run')} done", *always, *others]
    print(f"{sweep.name}: {', '.join(words)}")
    if by_end["failed"]:
        print("the same command with --retry failed runs them again")
    if by_end["stopped"]:
        print("the same command goes on with those that were stopped")


def _exit_code(others: list[Task], outcomes: list[Outcome]) -> int:
    """Return the exit code over all runs: those of this launch, and those that it left alone."""
    left = [*others, *(outcome.task for outcome in outcomes if outcome.end == "going on")]
    jobs = jobs_or_none() if any(task.job for task in left) else {}
    now = {t.rundir: judge(t.rundir, read_submitted(t.rundir), jobs) for t in left}
    undone = [task for task in left if now[task.rundir].standing != "done"]
    elsewhere = [t for t in undone if now[t.rundir].standing == "running" or now[t.rundir].job_id]
    if elsewhere:
        runs = "1 run goes" if len(elsewhere) == 1 else f"{len(elsewhere)} runs go"
        print(f"{runs} on elsewhere, so the sweep is not done; the same command says when it is")
    for task in undone:
        if task.standing == "running" and task not in elsewhere:
            print(f"ended elsewhere, {now[task.rundir].standing}: {task.rundir.path}")
    ends = {outcome.end for outcome in outcomes}
    if undone or ends & {"failed", "stopped"}:
        return 1
    return 2 if "refused" in ends else 0
