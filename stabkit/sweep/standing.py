"""How a run stands: by its files, and by what SLURM says of the job that it was submitted as."""

from collections.abc import Mapping
from dataclasses import dataclass

from stabkit.rundir import RunDir, Standing
from stabkit.sweep.queue import Job
from stabkit.sweep.submissions import Submitted


@dataclass(frozen=True)
class Judgment:
    """How a run stands. `job_id` is the SLURM job that runs it or is going to, if any."""

    standing: Standing
    job_id: str | None = None


def judge(rundir: RunDir, submitted: Submitted | None, jobs: Mapping[str, Job] | None) -> Judgment:
    """Return how a run stands. Reads only.

    `jobs` holds SLURM's jobs by id; read them after `submitted`, so that a job that is not among
    them has ended. It is None when SLURM cannot be asked. Then the job of a run that has not ended
    counts as alive, since two processes must never train the same run.
    """
    standing = rundir.standing()
    if submitted is None or standing == "done":
        return Judgment(standing)
    if jobs is None:
        return Judgment(standing, None if standing == "failed" else submitted.job_id)
    job = jobs.get(submitted.job_id)
    if job is None:
        if standing in ("failed", "preempted") or rundir.is_busy():
            return Judgment(standing)
        # Nobody is going to run it, however young its heartbeat.
        return Judgment("lost")
    if standing == "failed":
        # The job may be on its way out. If SLURM requeued it by itself, it comes back.
        return Judgment(standing, submitted.job_id if job.state == "PENDING" else None)
    if _was_requeued(rundir, standing, job):
        standing = "preempted"
    return Judgment(standing, submitted.job_id)


def _was_requeued(rundir: RunDir, standing: Standing, job: Job) -> bool:
    """Return whether the run was killed without a word, and its job has left that node."""
    if standing == "lost":
        return job.state != "RUNNING"
    return standing == "running" and job.state == "PENDING" and not rundir.is_busy()
