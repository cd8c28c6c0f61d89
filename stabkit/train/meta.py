"""What was run, where and with what: one entry an attempt in `meta.json`."""

import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import stabkit
from stabkit.rundir import RunDir, utc_now
from stabkit.train.distributed import world_size

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "pyarrow")


def record_attempt(rundir: RunDir, first_step: int, device: torch.device) -> None:
    meta = rundir.read_meta()
    attempt = {
        "began": utc_now(),
        "first_step": first_step,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "stabkit": stabkit.__version__,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": git_state(Path.cwd()),
    }
    rundir.write_meta(meta | {"attempts": [*meta.get("attempts", []), attempt]})


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted difference of the checkout at `folder`; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "diff": _git(folder, "diff", "HEAD")}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
