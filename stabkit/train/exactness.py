"""What decides the last bits of a run beside its configuration, and whether it has changed.

A resumed run is bit-equal to an unbroken one as long as all of this stays the same.
"""

import logging
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stabkit.config import RunConfig
from stabkit.monitor.ranks import world_size
from stabkit.rundir import RunDir
from stabkit.train.device import device_name
from stabkit.train.parallel.nccl import nccl_settings
from stabkit.train.parallel.topology import topology
from stabkit.train.refusals import InexactResumeError
from stabkit.version import __version__

log = logging.getLogger("stabkit")

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
# Each of these makes a library choose other kernels on the same processor.
CHOOSERS = (
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE"),
)


def circumstances(device: torch.device, threads: int) -> dict[str, Any]:
    """Return them as an attempt in `meta.json` holds them."""
    packages = {name: found for name in PACKAGES if (found := installed(name))}
    if device.type == "cuda":
        packages["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    several: dict[str, Any] = {"topology": topology()} if world_size() > 1 else {}
    if device.type == "cuda" and several:
        several["nccl"] = nccl_settings()
        packages["libnccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    chosen = [f"{name}={os.environ[name]}" for name in CHOOSERS if os.environ.get(name)]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": world_size(),
        **several,
        "threads": threads,
        "processor": _processor(),
        "kernels": ", ".join([torch.backends.cpu.get_cpu_capability(), *chosen]),
        "stabkit": __version__,
        "packages": packages,
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def choose_threads(config: RunConfig, rundir: RunDir) -> int:
    """Return the number in the configuration, or else the number that the run began with.

    The number of cores that are free at a resume must not count.
    """
    recorded = _last_attempt(rundir).get("threads")
    if config.runtime.threads is not None:
        return config.runtime.threads
    return recorded if isinstance(recorded, int) and recorded > 0 else torch.get_num_threads()


def check_resume(config: RunConfig, rundir: RunDir, allowed: bool) -> dict[str, Any]:
    """Return facts for the log of a resume: what is `changed`, and what is `unchecked`.

    Raises InexactResumeError when something has changed, unless that is `allowed`. Changes nothing.
    """
    if not rundir.checkpoint_file.exists():
        return {}
    before = _last_attempt(rundir)
    now = circumstances(torch.device(device_name(config.runtime)), config.runtime.threads or 0)
    changed = changes(before, now)
    unchecked = [name for name in _flat(now) if name not in _flat(before)]
    words = in_words(changed)
    if changed and not allowed:
        raise InexactResumeError(
            f"{words}: going on would not give the bits of an unbroken run; put it back, or pass "
            "--allow-inexact (runtime.allow_inexact=true) to go on all the same"
        )
    if changed:
        log.warning("stabkit: %s: not bit-equal to an unbroken run: %s", rundir.path, words)
    if unchecked:
        what = ", ".join(unchecked)
        log.warning("stabkit: %s: no earlier record to compare with: %s", rundir.path, what)
    facts = {"changed": changed, "unchecked": unchecked}
    return {name: found for name, found in facts.items() if found}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what differs between two attempts: name -> its value before and now."""
    was, is_now = _flat(before), _flat(now)
    return {
        name: [was[name], is_now.get(name)]
        for name in was
        if name in (*is_now, *PACKAGES) and was[name] != is_now.get(name)
    }


def in_words(changed: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{name} was {was}, is {now}" for name, (was, now) in changed.items())


def likely_cause(changed: str) -> str:
    """Return a sentence on why a run differs from its record, given what has changed in words."""
    if changed:
        return f"Changed: {changed}"
    return (
        "Versions, threads, processes, device and processor are those of the run; perhaps its "
        "files, its data or stabkit's code were changed"
    )


def _last_attempt(rundir: RunDir) -> Mapping[str, Any]:
    """Return the last attempt in `meta.json`; empty if an older version wrote none."""
    try:
        attempts = rundir.read_meta().get("attempts")
    except (OSError, ValueError):
        return {}
    last = attempts[-1] if isinstance(attempts, list) and attempts else {}
    return last if isinstance(last, Mapping) else {}


def _flat(attempt: Mapping[str, Any]) -> dict[str, Any]:
    packages = attempt.get("packages")
    names = (
        "device",
        "processes",
        "topology",
        "nccl",
        "threads",
        "processor",
        "kernels",
        "stabkit",
    )
    own = {name: attempt[name] for name in names if name in attempt}
    return own | dict(packages if isinstance(packages, Mapping) else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
