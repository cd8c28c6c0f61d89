"""SLURM's commands: which jobs it holds, and how to cancel them; asked once for all jobs."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PATIENCE_S = 20  # a busy controller is slow; one that is down would block for minutes
AT_ONCE = 500  # job ids on one command line
USUAL_ARRAY_SIZE = 1001  # SLURM's default of MaxArraySize
_JOB = re.compile(r"(\d[^|]*)\|([A-Z_]+)\|([^|]*)\|(.*)")


class SlurmError(RuntimeError):
    """A command of SLURM is missing or failed; the message is its own."""


@dataclass(frozen=True)
class Job:
    """A job that SLURM holds: its state (`_state`), why it waits, and its name."""

    state: str
    reason: str
    name: str


def live_jobs() -> dict[str, Job]:
    """Return this user's jobs that wait, run or are ending, by id (`12`, or `12_3` in an array).

    Raises SlurmError, also for a line that names no job: a run whose job is not found would be
    submitted a second time.
    """
    listing = _run("squeue", "--all", "--me", "-h", "-r", "-o", "%i|%T|%r|%j")
    jobs = {}
    for line in listing.splitlines():
        found = _JOB.fullmatch(line)
        if not found:
            raise SlurmError(f"squeue: {line[:100]!r} is not a job, such as 12_3|PENDING|None|name")
        job_id, state, reason, name = found.groups()
        jobs[job_id] = Job(_state(state), reason, name)
    return jobs


def ended_states(job_ids: Sequence[str]) -> dict[str, str]:
    """Return what accounting says of ended jobs, e.g. OUT_OF_MEMORY; often nothing.

    It never raises.
    """
    states: dict[str, str] = {}
    for some in _batches(job_ids):
        try:
            listing = _run("sacct", "-n", "-P", "-X", "-j", ",".join(some), "-o", "JobID,State")
        except SlurmError:
            return states
        states |= dict(line.split("|", 1) for line in listing.splitlines() if "|" in line)
    return {
        job_id: state for job_id, state in states.items() if state not in ("RUNNING", "PENDING")
    }


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs. Raises SlurmError."""
    for some in _batches(job_ids):
        _run("scancel", *some)


def max_array_size() -> int:
    """Return how many jobs an array may have here. Raises SlurmError."""
    found = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"), re.MULTILINE
    )
    return int(found[1]) if found and int(found[1]) > 1 else USUAL_ARRAY_SIZE


def is_running(job_id: str) -> bool:
    """Return whether SLURM lets the job run on: it is not canceled, requeued or out of time.

    It is also True when SLURM does not answer.
    """
    try:
        return _state(_run("squeue", "-h", "-j", job_id, "-o", "%T").strip()) in ("RUNNING", "")
    except SlurmError:
        return True


def _state(spelled: str) -> str:
    """Return a state as squeue spells it, but RUNNING for a job that is being sent a signal.

    SLURM reports SIGNALING while it sends the warning. In that moment a preempted job asks.
    """
    return "RUNNING" if spelled == "SIGNALING" else spelled


def _batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(job_ids), AT_ONCE):
        yield job_ids[start : start + AT_ONCE]


def _without_preferences() -> dict[str, str]:
    """Return the environment without settings such as SQUEUE_STATES, which hide jobs."""
    hidden = ("SQUEUE_", "SACCT_", "SCANCEL_")
    return {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | {"LC_ALL": "C"}


def _run(*words: str) -> str:
    if shutil.which(words[0]) is None:
        raise SlurmError(f"no {words[0]} on PATH: SLURM's commands are not on this machine")
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=True,
            timeout=PATIENCE_S,
            env=_without_preferences(),
            # SLURM signals a job's processes twice; the second signal must not end this command.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer in {PATIENCE_S} s") from None
    except subprocess.CalledProcessError as error:
        said = "; ".join(error.stderr.split("\n")).strip("; ") or f"exit code {error.returncode}"
        raise SlurmError(f"{words[0]}: {said}") from None
    return done.stdout
