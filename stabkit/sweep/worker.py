"""A worker of the local pool: one process that starts the runs that it is given, one by one.

Without a GPU it imports torch once and forks each run, which saves each the seconds of the import.
With a GPU each run is a new interpreter, since CUDA does not survive a fork.
"""

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import IO, cast

from stabkit.rundir import RunDir, append_to

ORPHAN_S = 60.0  # how long a run without a worker has to begin, before it is left alone


@dataclass(frozen=True)
class Slot:
    """The cores and the GPU, if any, that one run may use; `sharers` runs share that GPU."""

    cpus: tuple[int, ...]
    gpu: str | None
    sharers: int = 1


class Worker:
    """The launcher's side of a worker. Its `fileno` becomes readable when the run has ended."""

    def __init__(self, slot: Slot) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(len(slot.cpus))}
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        method = "fork" if slot.gpu is None and sys.platform == "linux" else "spawn"
        self.slot = slot
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stabkit.sweep.worker", method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        with suppress(AttributeError, ProcessLookupError):  # not on macOS; or it has ended already
            os.sched_setaffinity(self._process.pid, slot.cpus)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, rundir: RunDir, allow_inexact: bool = False) -> None:
        """Start a run whose configuration is in its folder."""
        rundir = RunDir(rundir.path.resolve())
        words = ["train", str(rundir.config_file), "--run-dir", str(rundir.path)]
        words += ["--allow-inexact"] * allow_inexact
        line = json.dumps([str(rundir.log_file), *words]) + "\n"
        with suppress(BrokenPipeError):  # the worker was killed: `exit_code` says so
            cast(IO[bytes], self._process.stdin).write(line.encode())

    def fileno(self) -> int:
        return cast(IO[bytes], self._process.stdout).fileno()

    def exit_code(self) -> int:
        """Wait for the run to end and return its exit code, or that of a killed worker.

        A negative one is minus the signal that killed it.
        """
        said = cast(IO[bytes], self._process.stdout).readline()
        return int(said) if said else self._process.wait()

    def has_ended(self) -> bool:
        """Return whether the worker itself has ended; its run may go on."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask the run to save and end, and take no other one; `join` waits for it."""
        cast(IO[bytes], self._process.stdin).close()
        self._process.terminate()

    def stop_orphan(self, rundir: RunDir) -> bool:
        """Wait for the worker to end, and stop its run if it was killed before it could do so.

        Return whether the run has ended. The run holds the worker's end of the pipe open for as
        long as it lives.
        """
        self._process.wait()
        deadline = time.monotonic() + ORPHAN_S
        told: set[int] = set()
        while not select.select([self], [], [], 0.1)[0]:
            pid = _trained_by(rundir)
            if pid is not None and pid not in told:
                told.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if not told and time.monotonic() > deadline:
                return False
        return True

    def join(self) -> None:
        """Wait for the worker to end."""
        self._process.wait()
        cast(IO[bytes], self._process.stdout).close()


def _trained_by(rundir: RunDir) -> int | None:
    """Return the process that trains a run, if a worker of this launcher started it."""
    attempts = rundir.read_meta().get("attempts")
    if not attempts or not rundir.is_busy():
        return None
    pid = attempts[-1].get("pid")
    try:  # all runs of a launcher are in its process group
        return pid if os.getpgid(pid) == os.getpgrp() else None
    except (OSError, TypeError):
        return None


def main(method: str) -> None:
    """Read a run a line, its log and the words of its command; answer with its exit code."""
    run: BaseProcess | None = None
    new = ForkProcess if method == "fork" else SpawnProcess

    def pass_on(number: int, _: FrameType | None) -> None:
        if run is None:
            os._exit(128 + number)
        run.terminate()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the run as well
    signal.signal(signal.SIGTERM, pass_on)
    if method == "fork":
        # Once for all runs. What fails here fails again in the run, and is in its log then.
        with suppress(Exception), redirect_stdout(sys.stderr):
            importlib.import_module("stabkit.train.loop")
            importlib.import_module("torch._dynamo")  # what every optimizer imports when it is made
            # Record the code that was imported just now: it may be edited while runs wait.
            importlib.import_module("stabkit.train.meta").code_now()
    for line in sys.stdin:
        log, *words = json.loads(line)
        process = new(target=_run, args=(log, words))
        process.start()
        run = process
        process.join()
        run = None
        with suppress(BrokenPipeError):  # the launcher was killed, the run went on to its end
            print(process.exitcode, flush=True)
    os._exit(0)  # at once: a signal to stop may arrive while the interpreter ends


def _run(log: str, words: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The launcher's pipe stays open as long as the run lives, also when the worker is killed.
    os.dup(1)
    try:
        with append_to(Path(log)) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError:  # a link, or no folder: `train` says so on the launcher's stderr
        os.dup2(2, 1)
    sys.argv = ["stabkit", *words]
    runpy.run_module("stabkit", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
