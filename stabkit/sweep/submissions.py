"""Which job runs which run, on disk: written so that a crash at any moment is noticed.

Before sbatch is called a note says which runs are about to be submitted and under which job name;
after it every run gets its `job.json` and the note goes. A note that is found says that a launcher
died in between: SLURM is then asked by the job name what became of it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabkit.rundir import RunDir, atomic_write, read_file, refuse_link, utc_now
from stabkit.sweep.queue import Job, cancel


@dataclass(frozen=True)
class Submitted:
    """`log` is relative to the run's folder, so that a sweep can be moved."""

    job_id: str
    log: str


def jobs_folder(sweep: Path) -> Path:
    """Where scripts, pickles and logs go. For the user alone: pickles are code.

    Raises PermissionError when others could have put something there, LinkedError for a link.
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
    """The last job that was submitted for a run. A damaged record counts as none."""
    try:
        content = json.loads(read_file(rundir.job_file))
        return Submitted(str(content["job_id"]), str(content["log"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_submitted(rundir: RunDir, job_id: str) -> None:
    # submitit's name for the log of a job's first task
    content = {"job_id": job_id, "log": f"../.submitit/{job_id}_0_log.out", "submitted": utc_now()}
    atomic_write(rundir.job_file, json.dumps(content).encode())


def note_file(folder: Path, name: str) -> Path:
    return folder / f"about-to-submit-{name}.json"


def note_down(folder: Path, name: str, runs: Sequence[str]) -> None:
    content = {"name": name, "runs": list(runs), "time": utc_now()}
    atomic_write(note_file(folder, name), json.dumps(content).encode())


def settle_notes(folder: Path, jobs: dict[str, Job]) -> list[str]:
    """Finish what a launcher that died began; says in words what was done.

    Jobs that can run are recorded as if nothing had happened. One whose pickle was not yet in its
    place would fail after a minute, so it is cancelled and its run counts as not submitted.
    """
    said = []
    for note in sorted(folder.glob("about-to-submit-*.json")):
        content: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        found = {job_id for job_id, job in jobs.items() if job.name == content["name"]}
        whole = {job_id for job_id in found if (folder / f"{job_id}_submitted.pkl").exists()}
        for job_id in sorted(whole):
            index = int(job_id.partition("_")[2] or 0)
            write_submitted(RunDir(folder.parent / content["runs"][index]), job_id)
        cancel(sorted(found - whole))
        for job_id in found - whole:
            del jobs[job_id]
        note.unlink()
        became = (
            f"{len(whole)} of its jobs are in the queue and stay, {len(found - whole)} could not "
            "have run and are cancelled"
        )
        said.append(
            f"a submission of {len(content['runs'])} runs was cut off at {content['time']}: "
            f"{became if found else 'none of its jobs is in the queue'}"
        )
    return said
