"""One process at a time writes a run."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from stabkit.rundir import RunBusyError, RunDir, same_folder


def _hold(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunDir(path).lock():
        ready.set()
        signal.pause()


def test_the_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(300)
    run = RunDir(tmp_path)
    assert run.is_busy()
    with pytest.raises(RunBusyError, match="another process is writing here"), run.lock():
        pass
    process.kill()
    process.join()
    assert not run.is_busy()
    with run.lock():
        pass


def test_a_locked_run_notices_that_its_folder_is_gone_or_another(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.lock() as held:
        held.check()
        run.path.rename(tmp_path / "moved")
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="the run's folder was deleted or moved"):
                held.check()
            run.path.mkdir(exist_ok=True)


def test_a_folder_made_anew_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    is_same = same_folder(folder)
    assert is_same()
    folder.rename(tmp_path / "b")
    assert not is_same()
    for _ in range(20):  # file systems like to give a number again
        folder.mkdir()
        assert not is_same()
        folder.rmdir()
    (tmp_path / "b").rename(folder)
    assert is_same()
    open_before = len(os.listdir("/dev/fd"))
    del is_same
    assert len(os.listdir("/dev/fd")) == open_before - 1
