"""The rows of `stabkit status`: how each run stands, and why."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stabkit.rundir import (
    AHEAD,
    RunDir,
    Standing,
    Status,
    find_runs,
    tables_without_parts,
    without_missing_rows,
)
from stabkit.sweep.log_tail import last_error
from stabkit.sweep.queue import Job, SlurmError, ended_states, live_jobs
from stabkit.sweep.standing import judge
from stabkit.sweep.submissions import Submitted, read_submitted

ENDED = ("done", "recorded")  # states of runs that are judged
OPEN = ("waiting", "running", "unstable", "preempted", "lost")  # states that may still change


@dataclass(frozen=True)
class Row:
    """One run.

    `state` is waiting, running, unstable (running, with confirmed events so far), preempted, done,
    recorded (a converted log), failed, lost (said to run, but its process or job is gone or silent)
    or unreadable.
    """

    run: str
    state: str
    step: int = 0
    steps: int = 0
    images_per_s: float | None = None
    eta_s: float | None = None
    knn: float | None = None
    reason: str | None = None
    events: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # steps without rows, where parts were deleted
    job: str | None = None
    job_state: str | None = None  # as squeue spells it, while SLURM holds the job
    log: str | None = None
    path: str = ""
    first: int = 0  # the step at which the process began that trains it, or did


def status_rows(folder: Path) -> list[Row]:
    """Return a row for every run below `folder`. Raises FileNotFoundError.

    SLURM is asked once, and only if a run that has not ended was submitted to it.
    """
    runs = [(RunDir(path), str(path.relative_to(folder))) for path in find_runs(folder)]
    rows = [status_row(rundir, name) for rundir, name in runs]
    submitted = [read_submitted(rundir) for rundir, _ in runs]
    jobs = None
    if any(job and row.state in OPEN for row, job in zip(rows, submitted, strict=True)):
        try:
            jobs = live_jobs()
        except SlurmError:
            jobs = None
    rows = [
        _with_job(row, rundir, job, jobs) if job else row
        for row, (rundir, _), job in zip(rows, runs, submitted, strict=True)
    ]
    return _with_accounting(rows) if jobs is not None else rows


def row_reader(runs: Sequence[RunDir]) -> Callable[[], list[Row]]:
    """Return a function that reads the rows of `runs`, only those again that may have changed.

    A launcher asks every second, and most runs of a long grid wait or have ended.
    """
    known: dict[RunDir, tuple[tuple[int, int] | None, Row]] = {}

    def read() -> list[Row]:
        for rundir in runs:
            written = _written(rundir)
            before = known.get(rundir)
            if before is None or before[0] != written or before[1].state in ("running", "unstable"):
                known[rundir] = written, status_row(rundir, rundir.path.name)
        return [known[rundir][1] for rundir in runs]

    return read


def _written(rundir: RunDir) -> tuple[int, int] | None:
    try:
        found = rundir.status_file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def status_row(rundir: RunDir, name: str) -> Row:
    """Return the row that the run's files alone give."""
    try:
        written = rundir.read_status()
        standing = rundir.standing_with(written)
    except (ValueError, OSError) as error:
        return Row(name, "unreadable", reason=str(error), path=str(rundir.path))
    status = written or Status("waiting")
    running = standing == "running"
    missing = _missing(rundir, status)
    reason = _reason(rundir, status, standing)
    return Row(
        name if name != "." else rundir.path.resolve().name,
        "unstable" if running and status.events else rundir.state(standing),
        status.step,
        status.steps,
        status.images_per_s,
        status.eta_s if running else None,
        status.knn,
        without_missing_rows(reason) if missing else reason,
        status.events,
        missing,
        log=str(rundir.log_file) if rundir.log_file.is_file() else None,
        path=str(rundir.path),
        first=status.first,
    )


def _missing(rundir: RunDir, status: Status) -> list[str]:
    """Return the gaps in tables that have lost a part. Tables that have not are not read."""
    trained = status.step > 0 and status.state in ("done", "preempted")
    tables = tables_without_parts(rundir.path, status.parts, trained)
    if not tables:
        return []
    from stabkit.store.gaps import find_gaps  # pandas takes a second to import
    from stabkit.store.reader import StoredRun

    try:
        return find_gaps(StoredRun(rundir.path), tables)
    except (ValueError, OSError) as error:
        return [f"parts of {', '.join(tables)}; which steps they held is not known ({error})"]


def _reason(rundir: RunDir, status: Status, standing: Standing) -> str | None:
    if standing == "missing" and rundir.state(standing) == "lost":
        return "its status.json is missing; how far it came is not known"
    if standing == "lost":
        silent = f"no sign of life since {status.heartbeat}"
        return f"{silent}: {AHEAD}" if rundir.is_ahead() else silent
    return status.reason


def _with_job(
    row: Row, rundir: RunDir, submitted: Submitted, jobs: Mapping[str, Job] | None
) -> Row:
    """Add the run's job and log, and what the queue says: why it waits, or that it is gone."""
    log = Path(os.path.normpath(rundir.path / submitted.log))
    row = replace(row, job=submitted.job_id, log=str(log) if log.is_file() else row.log)
    if jobs is None or row.state not in OPEN:
        return row
    standing = judge(rundir, submitted, jobs).standing
    if standing in ("done", "failed"):  # it ended since its row was read
        return replace(status_row(rundir, row.run), job=row.job, log=row.log)
    job = jobs.get(submitted.job_id)
    row = replace(row, job_state=job.state if job else None)
    if standing == "running":
        return row
    reason = _queue_reason(row, submitted, job, standing, log)
    state = "waiting" if standing == "missing" else standing
    return replace(row, state=state, eta_s=None, reason=reason)


def _queue_reason(
    row: Row, submitted: Submitted, job: Job | None, standing: Standing, log: Path
) -> str:
    """Say why a run that does not train stands so."""
    if job is None and standing == "preempted":
        return f"{row.reason}; job {submitted.job_id} is not in the queue"
    if job is None:
        last = last_error(log)
        return f"job {submitted.job_id} has ended" + (f"; its log says: {last}" if last else "")
    if standing == "lost":
        return f"{row.reason}, though SLURM says that its job runs"
    passing = {"RUNNING": "its job is starting", "COMPLETING": "its job is ending"}
    return passing.get(job.state, f"in the queue: {job.reason}")


def _with_accounting(rows: list[Row]) -> list[Row]:
    """Add what accounting remembers of the jobs of lost runs."""
    lost = [row.job for row in rows if row.state == "lost" and row.job]
    states = ended_states(lost) if lost else {}
    return [
        replace(row, reason=f"{states[row.job]}: {row.reason}") if row.job in states else row
        for row in rows
    ]
