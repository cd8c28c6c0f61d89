"""Describe what a measurement was made on: device, driver, versions, sources, date."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from typing import Any

import torch

from benchmarks.lib.results import ROOT

PACKAGES = ("torch", "torchvision", "timm", "triton", "lightning", "tensorboard", "wandb")


def find_circumstances(device: str, quick: bool) -> dict[str, Any]:
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if cuda
        else None,
        "driver": driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "sources": sources_digest(),
        "commit": commit(),
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
    }


def driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() or None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sources_digest() -> str:
    """Return twelve hex digits that change with any source file of stabkit/. Needs no git."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "stabkit").rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """Return the checkout's commit, or None without git or a repository."""
    try:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
