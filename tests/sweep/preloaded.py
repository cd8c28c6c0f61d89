"""Workers that start from a process that has imported torch, which saves each of them seconds.

Each is the code of the real command in a process of its own, with its own pipes, environment and
folder. What starts as another interpreter would is left to tests that start the command itself.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest

from stabkit.sweep import worker
from tests.train.processes import CONTEXT


class PreloadedPopen:
    """As much of `Popen` as a worker's launcher uses."""

    def __init__(
        self, command: Sequence[str], stdin: int, stdout: int, bufsize: int, env: dict[str, str]
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "stabkit.sweep.worker"]
        assert (stdin, stdout, bufsize) == (subprocess.PIPE, subprocess.PIPE, 0)
        heard, said = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(heard[1], "wb", 0), os.fdopen(said[0], "rb", 0)
        files = heard[0], said[1], 2
        args = (*command[3:], env, Path.cwd())
        self._process = CONTEXT.Process(target=_Main(files), args=args)
        self._process.start()
        os.close(heard[0])
        os.close(said[1])
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


class _Main:
    """The worker's `main`, with the files of its standard input, output and errors."""

    def __init__(self, files: tuple[int, int, int]) -> None:
        self.files = files

    def __getstate__(self) -> dict[str, Any]:
        return {"files": [DupFd(file) for file in self.files]}  # while its process is started

    def __call__(self, method: str, environment: dict[str, str], folder: Path) -> None:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for number, file in enumerate(self.files):
            taken = file.detach()  # type: ignore[attr-defined]
            os.dup2(taken, number)
            os.close(taken)
        sys.stdin = os.fdopen(0, closefd=False)
        worker.main(method)


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers that have torch already."""
    preload(monkeypatch)


def preload(patch: pytest.MonkeyPatch) -> None:
    class Subprocess:
        PIPE = subprocess.PIPE
        Popen = PreloadedPopen

    patch.setattr(worker, "subprocess", Subprocess)
