"""Decide where a run computes, in one place."""

import ctypes
import os
import shutil
from contextlib import suppress

import torch

from stabkit.config import ComputeConfig, RuntimeConfig
from stabkit.monitor.ranks import world_size
from stabkit.train.parallel.reduce import local_rank


def prepare_device(runtime: RuntimeConfig, compute: ComputeConfig) -> torch.device:
    """Return the device; fix threads and algorithms, so that the same step gives the same bits.

    The processes of a node take its GPUs in turn, whatever number `runtime.device` names. Raises
    ValueError when the device lacks the precision or the machine lacks a compiler.
    """
    device = torch.device(device_name(runtime))
    tf32 = compute.precision == "tf32"
    if tf32 and device.type != "cuda":
        raise ValueError(
            f"compute.precision 'tf32' needs a CUDA device and this run is on {device.type}; "
            "should be fp32, bf16 or fp16"
        )
    if compute.compile and not any(shutil.which(name) for name in _compilers()):
        raise ValueError(
            "compute.compile needs a C++ compiler and there is none: install g++, name one in CXX, "
            "or leave compute.compile out"
        )
    if device.type == "cuda" and world_size() > 1:
        device = torch.device("cuda", local_rank() % max(1, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    _keep_freed_memory()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32  # true by default: fp32 would not be fp32
    return device


def check_device(runtime: RuntimeConfig) -> None:
    """Raise ValueError when the device is not there."""
    asked = f"runtime.device {runtime.device!r}"
    try:
        device = torch.device(device_name(runtime))
    except RuntimeError:
        raise ValueError(f"{asked}: should be auto, cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(f"{asked}: there is no CUDA device here; should be auto or cpu")
        if (device.index or 0) >= count and world_size() == 1:
            raise ValueError(f"{asked}: the last CUDA device here is cuda:{count - 1}")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"{asked}: there is no such device here; should be auto or cpu")
    elif device.type != "cpu":
        raise ValueError(f"{asked}: should be auto, cpu, cuda or cuda:NUMBER")


def _compilers() -> tuple[str, ...]:
    return os.environ.get("CXX", "g++"), "g++", "clang++"


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step.

    Otherwise it goes back to the system, and every page has to be faulted in again, which costs a
    few per cent of a step on a CPU.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # mallopt(3)
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the largest that it takes
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def device_name(runtime: RuntimeConfig) -> str:
    if runtime.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return runtime.device
