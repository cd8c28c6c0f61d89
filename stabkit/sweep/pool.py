"""A bounded pool of local runs: each is a process of its own, on cores or a GPU of its own."""

import math
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from stabkit.config import ConfigError, RunConfig
from stabkit.rundir import ForeignFolderError, RunDir, Status
from stabkit.sweep.folders import claim_folder, write_waiting
from stabkit.sweep.log_tail import last_refusal
from stabkit.sweep.reconcile import Task
from stabkit.sweep.worker import Slot, Worker

TICK_S = 1.0
REFUSED = 2  # the exit code of a wrong request


ENDS = ("done", "failed", "stopped", "refused", "going on")


@dataclass(frozen=True)
class Outcome:
    """How a run of the pool ended.

    `refusal` says why a run that had been trained before does not go on; it is then as it was.
    `orphaned`: its worker was killed, and the run went on without it.
    """

    task: Task
    status: Status
    refusal: str | None = None
    orphaned: bool = False

    @property
    def end(self) -> str:
        """One of ENDS; `going on`: another process has the run."""
        if self.refusal is not None:
            return "refused"
        ends = {"done": "done", "preempted": "stopped", "running": "going on"}
        return ends.get(self.status.state, "failed")


def make_slots(
    configs: Sequence[RunConfig], cpus: Sequence[int], gpus: Sequence[str]
) -> list[Slot]:
    """Divide the GPUs, or else the cores, among as many runs as fit side by side.

    The GPUs are assigned in turn, so that a few runs spread over all of them.
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

    The longest go first, so that no core is idle at the end. A run whose worker was killed keeps
    its slot until it ends; if it had not begun, it is started once more. `tick` is called about
    once a second, for a progress display.
    """
    for task in tasks:
        write_waiting(task.run, task.rundir, task.standing, len(slots[0].cpus))
    waiting = sorted(tasks, key=lambda task: -expected_work(task.run.config))
    workers: list[Worker] = []
    running: dict[Worker, tuple[Task, Status | None]] = {}
    retried: set[RunDir] = set()
    outcomes = []
    with _ended_with_us(workers, running):
        workers += [Worker(slot) for slot in slots[: len(tasks)]]
        free = list(workers)
        while waiting or running:
            while waiting and free:
                task = waiting.pop(0)
                try:  # hours may have passed since the folder was claimed
                    claim_folder(task.run, task.rundir)
                except (ForeignFolderError, ConfigError) as error:
                    outcomes.append(Outcome(task, Status("failed", reason=str(error))))
                    continue
                worker = free.pop(0)
                if worker.has_ended():  # killed, for example for want of memory
                    worker = Worker(worker.slot)
                    workers.append(worker)
                running[worker] = task, task.rundir.last_status()
                worker.start(task.rundir, task.run.config.runtime.allow_inexact)
            for worker in select.select(list(running), [], [], TICK_S)[0]:
                (task, before), code = running.pop(worker), worker.exit_code()
                free.append(worker)
                killed, own = worker.has_ended(), task.rundir.last_status()
                if killed and own == before and task.rundir not in retried:
                    retried.add(task.rundir)
                    waiting.insert(0, task)
                    continue
                status = _final_status(task, code, worker.slot)
                refused = code == REFUSED and status.state == "preempted"
                refusal = _refusal(task) if refused else None
                orphaned = killed and own != before and status == own
                outcomes.append(Outcome(task, status, refusal, orphaned))
            tick()
    return outcomes


def expected_work(config: RunConfig) -> float:
    """Estimate a run's forward passes, in units of one image, to tell long runs from short ones.

    A step is two views through the network, its gradient (two passes) and the momentum twin.
    """
    model, size = config.model, config.data.image_size
    patches = (size / (model.patch_size or 16)) ** 2
    weights = (model.width or 1) ** 2 * (model.depth or 1)
    step = 2 * (1 + 2 + 1) * config.train.batch
    evaluation = config.knn.queries + config.knn.bank
    return (config.end - config.begin) * (step + evaluation / config.knn.every) * patches * weights


def _final_status(task: Task, returncode: int, slot: Slot) -> Status:
    """Return the run's own last status, or write one for a run that died without a word.

    It is `running` when another process has the run by now.
    """
    status = task.rundir.last_status() or Status("failed")
    if status.state in ("preempted", "done"):
        return status
    if task.rundir.is_busy():  # the other process writes the status
        return replace(status, state="running", reason="another process is running it")
    if not task.rundir.path.is_dir():
        return replace(status, state="failed", reason="the run's folder was deleted or moved")
    if status.state != "failed" or not status.reason:
        status = replace(status, state="failed", reason=_end_reason(task, returncode))
        _write(task, status)
    elif slot.sharers > 1 and "out of memory" in status.reason.lower():
        remedy = f"{slot.sharers} runs share the GPU; fewer fit: runtime.runs_per_gpu"
        status = replace(status, reason=f"{status.reason} ({remedy})")
        _write(task, status)
    return status


def _end_reason(task: Task, returncode: int) -> str:
    if returncode == REFUSED:
        return _refusal(task)
    reason = f"the process ended with exit code {returncode}"
    if returncode < 0:
        reason = f"the process was killed by {signal.Signals(-returncode).name}"
    return f"{reason}; see {task.rundir.log_file}"


def _refusal(task: Task) -> str:
    """Return the message with which a run refused its request."""
    said = last_refusal(task.rundir.log_file)
    return said or f"the process ended with exit code {REFUSED}; see {task.rundir.log_file}"


def _write(task: Task, status: Status) -> None:
    """Write a status if the disk takes it; if not, the other runs go on all the same."""
    with suppress(OSError):
        task.rundir.write_status(status)


@contextmanager
def _ended_with_us(
    workers: Sequence[Worker], running: Mapping[Worker, tuple[Task, Status | None]]
) -> Iterator[None]:
    """End all runs when the launcher ends; they save first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.stop()
        for worker, (task, _) in running.items():
            if not worker.stop_orphan(task.rundir):
                print(f"its worker was killed, and the run goes on: {task.rundir.path}", flush=True)
        for worker in workers:
            worker.join()


def visible_cpus() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """Return the indices or ids of the GPUs that this process may use, without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [g for g in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if g and g != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU")]
