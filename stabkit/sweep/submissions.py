"""Records of which job runs which run, written so that a crash at any moment is noticed.

Before sbatch is called, a note says which runs are about to be submitted under which job name.
After it every run gets its `job.json`, and the note is removed. If a launcher finds a note, another
one died in between; SLURM is then asked by the job name what became of the jobs.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabkit.printing import counted
from stabkit.rundir import RunDir, atomic_write, read_file, refuse_link, utc_now
from stabkit.sweep.queue import Job, SlurmError, cancel


@dataclass(frozen=True)
class Submitted:
    """The job of a run. `log` is relative to the run's folder, so that a sweep can be moved."""

    job_id: str
    log: str


def jobs_folder(sweep: Path) -> Path:
    """Create and return the folder of scripts, pickles and logs, readable by the user alone.

    Pickles are code. Raises PermissionError when another user owns the folder, LinkedError for a
    link.
    """
    folder = sweep / ".submitit"
    refuse_link(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise PermissionError(f"{folder}: belongs to another user; jobs would run what it holds")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def read_submitted(rundir: RunDir) -> Submitted | None:
    """Return the last job that was submitted for a run. A damaged record counts as none."""
    try:
        content = json.loads(read_file(rundir.job_file))
        return Submitted(str(content["job_id"]), str(content["log"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_submitted(rundir: RunDir, job_id: str) -> None:
    """Record the job of a run."""
    # submitit's name for the log of a job's first task
    content = {"job_id": job_id, "log": f"../.submitit/{job_id}_0_log.out", "submitted": utc_now()}
    atomic_write(rundir.job_file, json.dumps(content).encode())


def note_file(folder: Path, name: str) -> Path:
    """Return the note of the submission under a job name."""
    return folder / f"about-to-submit-{name}.json"


def write_note(folder: Path, name: str, runs: Sequence[str]) -> None:
    """Note that `runs` are about to be submitted."""
    content = {"name": name, "runs": list(runs), "time": utc_now()}
    atomic_write(note_file(folder, name), json.dumps(content).encode())


def settle_notes(folder: Path, jobs: dict[str, Job]) -> list[str]:
    """Finish the submissions of launchers that died, and return lines that say what was done.

    Jobs that can run are recorded as usual. A job whose pickle was not yet in its place would fail
    after a minute, so it is canceled, and its run counts as not submitted.
    """
    said = []
    for note in sorted(folder.glob("about-to-submit-*.json")):
        name, runs, time = _read_note(note)
        found = {job_id for job_id, job in jobs.items() if job.name == name}
        whole = {job_id for job_id in found if (folder / f"{job_id}_submitted.pkl").exists()}
        for job_id in sorted(whole):
            index = int(job_id.partition("_")[2] or 0)
            write_submitted(RunDir(folder.parent / runs[index]), job_id)
        cancel(sorted(found - whole))
        for job_id in found - whole:
            del jobs[job_id]
        note.unlink()
        became = (
            f"{len(whole)} of its jobs are in the queue and stay, {len(found - whole)} could not "
            "have run and are canceled"
        )
        said.append(
            f"a submission of {counted(len(runs), 'run')} was cut off at {time}: "
            f"{became if found else 'none of its jobs is in the queue'}"
        )
    return said


def _read_note(note: Path) -> tuple[str, list[str], str]:
    """Return job name, runs and time of a note. Raises SlurmError for one that is damaged."""
    try:
        content: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return str(content["name"]), [str(run) for run in content["runs"]], str(content["time"])
    except (ValueError, KeyError, TypeError) as error:
        name = note.stem.removeprefix("about-to-submit-")
        raise SlurmError(
            f"{note}: damaged ({type(error).__name__}: {error}); a launcher died while it "
            f"submitted. Cancel the jobs of this name, if any (scancel --name={name}), and remove "
            "the file"
        ) from None
