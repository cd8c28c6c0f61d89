"""Runs and how they stand: from their files, with what SLURM says as a hint."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stabkit.rundir import AHEAD, RunDir, Standing, Status, find_runs
from stabkit.sweep.queue import Job, SlurmError, ended_states, live_jobs
from stabkit.sweep.submissions import Submitted, read_submitted

OPEN = ("waiting", "running", "unstable", "preempted", "lost")  # what may still go on
LAST_BYTES = 4096  # of a log, where its last line is looked for


@dataclass(frozen=True)
class Row:
    """One run.

    `state`: waiting, running, unstable (running, with events so far), preempted, done, failed,
    lost (said to run, but its process or job is gone or silent) or unreadable.
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
    job: str | None = None
    job_state: str | None = None  # SLURM's word, while it holds the job
    log: str | None = None


def status_rows(folder: Path) -> list[Row]:
    """Every run below `folder`. Raises FileNotFoundError.

    SLURM is asked once, and only when a run that has not ended was submitted to it.
    """
    runs = [(RunDir(path), str(path.relative_to(folder))) for path in find_runs(folder)]
    rows = [status_row(rundir, name) for rundir, name in runs]
    submitted = [read_submitted(rundir) for rundir, _ in runs]
    if not any(job for row, job in zip(rows, submitted, strict=True) if row.state in OPEN):
        jobs = None
    else:
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
    """Reads the rows of `runs`, each again only while it runs or once its status was written anew.

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
    """From the run's files alone."""
    try:
        status = rundir.read_status() or Status("waiting")
        standing = rundir.standing()
    except (ValueError, OSError) as error:
        return Row(name, "unreadable", reason=str(error))
    state: str = "waiting" if standing == "missing" else standing
    running = state == "running"
    return Row(
        name if name != "." else rundir.path.name,
        "unstable" if running and status.events else state,
        status.step,
        status.steps,
        status.images_per_s,
        status.eta_s if running else None,
        status.knn,
        _reason(rundir, status, standing),
        status.events,
        log=str(rundir.log_file) if rundir.log_file.is_file() else None,
    )


def _reason(rundir: RunDir, status: Status, standing: Standing) -> str | None:
    if standing == "lost":
        silent = f"no sign of life since {status.heartbeat}"
        return f"{silent}: {AHEAD}" if rundir.is_ahead() else silent
    return status.reason


def _with_job(
    row: Row, rundir: RunDir, submitted: Submitted, jobs: Mapping[str, Job] | None
) -> Row:
    """Its job and log, and what the queue adds: why it waits, or that nobody will run it."""
    log = Path(os.path.normpath(rundir.path / submitted.log))
    row = replace(row, job=submitted.job_id, log=str(log) if log.is_file() else row.log)
    if jobs is None or row.state not in OPEN:
        return row
    job = jobs.get(submitted.job_id)
    row = replace(row, job_state=job.state if job else None)
    pending = job is not None and job.state == "PENDING"
    if row.state in ("running", "unstable") and (rundir.is_busy() or (job and not pending)):
        return row
    if job is None:
        again = rundir.last_status()  # it may have ended between the file and the queue
        if again is not None and again.state in ("done", "failed"):
            return replace(status_row(rundir, row.run), job=row.job, log=row.log)
        last = _last_error(log)
        ended = f"job {submitted.job_id} has ended" + (f"; its log says: {last}" if last else "")
        if row.state == "preempted":
            return replace(row, reason=f"{row.reason}; job {submitted.job_id} is not in the queue")
        return replace(row, state="lost", reason=ended)
    if row.state == "lost" and job.state == "RUNNING":
        return replace(row, reason=f"{row.reason}, though SLURM says that its job runs")
    if row.state in ("running", "unstable", "lost"):  # killed, and SLURM requeued it by itself
        row = replace(row, state="preempted", eta_s=None)
    passing = {"RUNNING": "its job is starting", "COMPLETING": "its job is ending"}
    return replace(row, reason=passing.get(job.state, f"in the queue: {job.reason}"))


def _with_accounting(rows: list[Row]) -> list[Row]:
    lost = [row.job for row in rows if row.state == "lost" and row.job]
    states = ended_states(lost) if lost else {}
    return [
        replace(row, reason=f"{states[row.job]}: {row.reason}") if row.job in states else row
        for row in rows
    ]


def _last_error(log: Path) -> str:
    """The last line that speaks of an error, or else the last; srun's farewells come after it."""
    if not log.is_file():  # of a pipe one would wait for ever
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("srun:")]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]
