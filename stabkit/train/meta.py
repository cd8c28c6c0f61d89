"""What was run, where and with what: one entry in `meta.json` for each attempt."""

import json
import os
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stabkit.code_state import checkout, git_state
from stabkit.rundir import RunDir, read_file, utc_now
from stabkit.train.exactness import circumstances, installed

TABLES = ("pandas", "pyarrow")  # packages that write tables and compute nothing


def record_attempt(rundir: RunDir, first_step: int, device: torch.device) -> None:
    """Add an entry to `meta.json` for this process, which begins at `first_step`."""
    meta = rundir.read_meta()
    found = circumstances(device, torch.get_num_threads())
    tables = {name: known for name in TABLES if (known := installed(name))}
    attempt = {
        "began": utc_now(),
        "first_step": first_step,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": _job(),
        "node": os.environ.get("SLURMD_NODENAME"),
        **found,
        "packages": found["packages"] | tables,
        "python": platform.python_version(),
        "code": str(Path(__file__).resolve().parents[2]),
        "git": code_now(),
    }
    rundir.write_meta(meta | {"attempts": [*meta.get("attempts", []), attempt]})


@cache
def code_now() -> dict[str, Any] | None:
    """Return the state of the code; cached, since the code of a process does not change."""
    return git_state(checkout() or Path.cwd())


def forget_other_job(rundir: RunDir) -> None:
    """Drop the record of another SLURM job: it has ended, and the run goes on without it."""
    try:
        known = json.loads(read_file(rundir.job_file)).get("job_id")
    except (OSError, ValueError, AttributeError):
        return
    if known != _job():
        rundir.job_file.unlink(missing_ok=True)


def _job() -> str | None:
    """Return the SLURM job of this process, as squeue names it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
