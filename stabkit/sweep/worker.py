"""What a slot of the local pool runs: one process that starts the runs it is told of, in turn.

Without a GPU it imports torch once and forks each run from there, which spares each its seconds of
imports. With one each run is a new interpreter: CUDA does not survive a fork.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import IO, cast

from stabkit.rundir import RunDir, append_to


@dataclass(frozen=True)
class Slot:
    """What one run may use: its cores, and a GPU or none; `sharers` runs share that GPU."""

    cpus: tuple[int, ...]
    gpu: str | None
    sharers: int = 1


class Worker:
    """The launcher's side: one run at a time; readable (`fileno`) once the run has ended."""

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
        rundir = RunDir(rundir.path.resolve())
        words = ["train", str(rundir.config_file), "--run-dir", str(rundir.path)]
        words += ["--allow-inexact"] * allow_inexact
        line = json.dumps([str(rundir.log_file), *words]) + "\n"
        with suppress(BrokenPipeError):  # it was killed: `exit_code` says so
            cast(IO[bytes], self._process.stdin).write(line.encode())

    def fileno(self) -> int:
        return cast(IO[bytes], self._process.stdout).fileno()

    def exit_code(self) -> int:
        """Of the run, or of this worker if it was killed; waits for the end of the run either way.

        Negative: minus the signal that killed it.
        """
        said = cast(IO[bytes], self._process.stdout).readline()
        return int(said) if said else self._process.wait()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask the run to save and end, and take no other; `join` waits for it."""
        cast(IO[bytes], self._process.stdin).close()
        self._process.terminate()

    def join(self) -> None:
        self._process.wait()
        cast(IO[bytes], self._process.stdout).close()


def main(method: str) -> None:
    """Reads a run a line, its log and the words of its command; answers with its exit code."""
    run: BaseProcess | None = None
    new = ForkProcess if method == "fork" else SpawnProcess

    def pass_on(number: int, _: FrameType | None) -> None:
        if run is None:
            os._exit(128 + number)
        run.terminate()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the run as well
    signal.signal(signal.SIGTERM, pass_on)
    if method == "fork":
        # once for all its runs; what fails here fails again in the run, and is in its log then
        with suppress(Exception), redirect_stdout(sys.stderr):
            importlib.import_module("stabkit.train.loop")
            importlib.import_module("torch._dynamo")  # what every optimizer imports when it is made
            # what was read just now is what will run, whatever is edited while runs wait
            importlib.import_module("stabkit.train.meta").code_now()
    for line in sys.stdin:
        log, *words = json.loads(line)
        process = new(target=_run, args=(log, words))
        process.start()
        run = process
        process.join()
        run = None
        with suppress(BrokenPipeError):  # the launcher was killed; the run went on to its end
            print(process.exitcode, flush=True)
    os._exit(0)  # at once: it may be told to stop while it ends


def _run(log: str, words: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # the launcher's pipe stays open as long as the run lives, also when the worker is killed
    os.dup(1)
    try:
        with append_to(Path(log)) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError:  # a link, or no folder: `train` says so where the launcher's user reads
        os.dup2(2, 1)
    sys.argv = ["stabkit", *words]
    runpy.run_module("stabkit", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
