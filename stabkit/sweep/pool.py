"""A bounded pool of local runs: each in a process of its own, on cores or a GPU of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from stabkit.config import RunConfig
from stabkit.rundir import Status
from stabkit.sweep.reconcile import Task, prepare

POLL_S = 0.2


@dataclass(frozen=True)
class Slot:
    """What one run may use: its cores, and a GPU or none."""

    cpus: tuple[int, ...]
    gpu: str | None


@dataclass(frozen=True)
class Outcome:
    task: Task
    status: Status


def make_slots(
    configs: Sequence[RunConfig], cpus: Sequence[int], gpus: Sequence[str]
) -> list[Slot]:
    """Divide GPUs, or else cores, among as many runs as fit side by side."""
    if gpus and all(config.runtime.device != "cpu" for config in configs):
        share = max(1, len(cpus) // len(gpus))
        return [
            Slot(tuple(cpus[i * share : (i + 1) * share]) or tuple(cpus), g)
            for i, g in enumerate(gpus)
        ]
    wanted = max((config.runtime.threads or 0 for config in configs), default=0)
    threads = wanted or max(1, len(cpus) // max(1, len(configs)))
    count = max(1, len(cpus) // threads)
    return [Slot(tuple(cpus[i * threads : (i + 1) * threads]), None) for i in range(count)]


def run_pool(
    tasks: Sequence[Task], slots: Sequence[Slot], tick: Callable[[], None]
) -> list[Outcome]:
    """Run every task, `len(slots)` at a time; a run that fails leaves the others running.

    `tick` is called several times a second, for a progress display.
    """
    waiting, free = list(tasks), list(slots)
    running: dict[subprocess.Popen[bytes], tuple[Task, Slot]] = {}
    outcomes = []
    for task in tasks:
        prepare(task, len(slots[0].cpus))
    with _ended_with_us(running):
        while waiting or running:
            while waiting and free:
                task, slot = waiting.pop(0), free.pop(0)
                running[_start(task, slot)] = (task, slot)
            for process in [p for p in running if p.poll() is not None]:
                task, slot = running.pop(process)
                free.append(slot)
                outcomes.append(Outcome(task, _final_status(task, process.returncode)))
            tick()
            time.sleep(POLL_S)
    return outcomes


def _start(task: Task, slot: Slot) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": str(len(slot.cpus))}
    if slot.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
    path = task.rundir.path.resolve()
    command = [sys.executable, "-m", "stabkit", "train", str(task.rundir.config_file.resolve())]
    with task.rundir.log_file.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--run-dir", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
    with suppress(AttributeError, ProcessLookupError):  # not on macOS; or it has ended already
        os.sched_setaffinity(process.pid, slot.cpus)
    return process


def _final_status(task: Task, returncode: int) -> Status:
    """The run's own last word, or ours when it died without one."""
    status = task.rundir.last_status() or Status("failed")
    if status.state == "preempted" or (returncode == 0 and status.state == "done"):
        return status
    if task.rundir.is_busy():  # somebody else's by now: theirs to write
        return replace(status, state="failed", reason="another process is running it")
    if status.state != "failed" or not status.reason:
        reason = f"the process ended with exit code {returncode}"
        if returncode < 0:
            reason = f"the process was killed by {signal.Signals(-returncode).name}"
        status = replace(status, state="failed", reason=f"{reason}; see {task.rundir.log_file}")
        task.rundir.write_status(status)
    return status


@contextmanager
def _ended_with_us(running: dict[subprocess.Popen[bytes], tuple[Task, Slot]]) -> Iterator[None]:
    """Runs end with the launcher; what they did up to their last checkpoint stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def visible_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """Indices or ids of the GPUs this process may use, without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [g for g in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if g and g != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU")]
