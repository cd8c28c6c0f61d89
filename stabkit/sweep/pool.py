"""A bounded pool of local runs: each in a process of its own, on cores or a GPU of its own."""

import math
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from stabkit.config import ConfigError, RunConfig
from stabkit.rundir import ForeignFolderError, RunDir, Status
from stabkit.sweep.reconcile import Task, claim_cell, prepare
from stabkit.sweep.worker import Slot, Worker

TICK_S = 1.0


ENDS = ("done", "failed", "stopped", "refused", "going on")


@dataclass(frozen=True)
class Outcome:
    """`refused`: the run is as it was; its log says why it does not go on.

    `alone`: its worker was killed, and it went on without.
    """

    task: Task
    status: Status
    refused: bool = False
    alone: bool = False

    @property
    def end(self) -> str:
        """One of ENDS; `going on`: another process has it."""
        if self.refused:
            return "refused"
        ends = {"done": "done", "preempted": "stopped", "running": "going on"}
        return ends.get(self.status.state, "failed")


def make_slots(
    configs: Sequence[RunConfig], cpus: Sequence[int], gpus: Sequence[str]
) -> list[Slot]:
    """Divide GPUs, or else cores, among as many runs as fit side by side.

    The GPUs are taken in turn, so that a few runs spread over all of them.
    """
    if gpus and all(config.runtime.device != "cpu" for config in configs):
        sharers = min((config.runtime.runs_per_gpu for config in configs), default=1)
        sharers = max(1, min(sharers, math.ceil(len(configs) / len(gpus))))
        taken = [*gpus] * sharers
        share = max(1, len(cpus) // len(taken))
        parts = [tuple(cpus[i * share : (i + 1) * share]) or tuple(cpus) for i in range(len(taken))]
        return [Slot(part, gpu, sharers) for part, gpu in zip(parts, taken, strict=True)]
    wanted = max((config.runtime.threads or 0 for config in configs), default=0)
    threads = wanted or max(1, len(cpus) // max(1, len(configs)))
    count = max(1, len(cpus) // threads)
    return [Slot(tuple(cpus[i * threads : (i + 1) * threads]), None) for i in range(count)]


def run_pool(
    tasks: Sequence[Task], slots: Sequence[Slot], tick: Callable[[], None]
) -> list[Outcome]:
    """Run every task, `len(slots)` at a time; a run that fails leaves the others running.

    The longest go first, so that no core waits for one at the end. A run whose worker is killed has
    its slot until it ends; one that had not begun by then is started once more. `tick` is called
    about once a second, for a progress display.
    """
    for task in tasks:
        prepare(task, len(slots[0].cpus))
    waiting = sorted(tasks, key=lambda task: -expected_work(task.cell.config))
    workers: list[Worker] = []
    running: dict[Worker, tuple[Task, Status | None]] = {}
    again: set[RunDir] = set()
    outcomes = []
    with _ended_with_us(workers):
        workers += [Worker(slot) for slot in slots[: len(tasks)]]
        free = list(workers)
        while waiting or running:
            while waiting and free:
                task = waiting.pop(0)
                try:  # since it was prepared, hours may have passed
                    claim_cell(task.cell, task.rundir)
                except (ForeignFolderError, ConfigError) as error:
                    outcomes.append(Outcome(task, Status("failed", reason=str(error))))
                    continue
                worker = free.pop(0)
                if worker.has_ended():  # killed, as for want of memory
                    worker = Worker(worker.slot)
                    workers.append(worker)
                running[worker] = task, task.rundir.last_status()
                worker.start(task.rundir, task.cell.config.runtime.allow_inexact)
            for worker in select.select(list(running), [], [], TICK_S)[0]:
                (task, before), code = running.pop(worker), worker.exit_code()
                free.append(worker)
                killed, own = worker.has_ended(), task.rundir.last_status()
                if killed and own == before and task.rundir not in again:
                    again.add(task.rundir)
                    waiting.insert(0, task)
                    continue
                status = _final_status(task, code, worker.slot)
                refused = code == 2 and status.state == "preempted"
                alone = killed and own != before and status == own
                outcomes.append(Outcome(task, status, refused, alone))
            tick()
    return outcomes


def expected_work(config: RunConfig) -> float:
    """Forward passes, roughly, in units of one image: right enough to tell long runs from short.

    A step is two views through the network, its gradient (two passes) and the twin.
    """
    model, size = config.model, config.data.image_size
    patches = (size / (model.patch_size or 16)) ** 2
    weights = (model.width or 1) ** 2 * (model.depth or 1)
    step = 2 * (1 + 2 + 1) * config.train.batch
    evaluation = config.knn.queries + config.knn.bank
    return config.train.steps * (step + evaluation / config.knn.every) * patches * weights


def _final_status(task: Task, returncode: int, slot: Slot) -> Status:
    """The run's own last word, or ours when it died without one; `running` when somebody else has
    it by now."""
    status = task.rundir.last_status() or Status("failed")
    if status.state in ("preempted", "done"):
        return status
    if task.rundir.is_busy():  # theirs to write
        return replace(status, state="running", reason="another process is running it")
    if not task.rundir.path.is_dir():
        return replace(status, state="failed", reason="the run's folder was deleted or moved")
    if status.state != "failed" or not status.reason:
        reason = f"the process ended with exit code {returncode}"
        if returncode < 0:
            reason = f"the process was killed by {signal.Signals(-returncode).name}"
        status = replace(status, state="failed", reason=f"{reason}; see {task.rundir.log_file}")
        _write(task, status)
    elif slot.sharers > 1 and "out of memory" in status.reason.lower():
        remedy = f"{slot.sharers} runs share the GPU; fewer fit: runtime.runs_per_gpu"
        status = replace(status, reason=f"{status.reason} ({remedy})")
        _write(task, status)
    return status


def _write(task: Task, status: Status) -> None:
    """As far as the disk takes it: the other runs must not end because one cannot be written of."""
    with suppress(OSError):
        task.rundir.write_status(status)


@contextmanager
def _ended_with_us(workers: Sequence[Worker]) -> Iterator[None]:
    """Runs end with the launcher; what they did up to their last checkpoint stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


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
