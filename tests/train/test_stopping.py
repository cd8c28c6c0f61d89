import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stabkit.train import stopping
from stabkit.train.stopping import PREEMPT_SIGNAL, stop_on_signals

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, PREEMPT_SIGNAL])
def test_a_signal_is_noted_and_the_previous_handler_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == number, "the first one is the reason"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_forked_helper_ends_by_sigterm_and_ignores_preemption() -> None:
    with stop_on_signals() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), PREEMPT_SIGNAL)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(3)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert stop.signal is None


def test_a_thread_trains_without_handlers() -> None:
    seen = []

    def act() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize(("name", "expected"), [("USR1", "SIGUSR1"), (None, "SIGUSR2")])
def test_the_signal_is_the_one_that_submitit_uses(
    monkeypatch: pytest.MonkeyPatch, name: str | None, expected: str
) -> None:
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL", raising=False)
    if name:
        monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", name)
    assert stopping.__file__
    assert runpy.run_path(stopping.__file__)["PREEMPT_SIGNAL"].name == expected


def test_ctrl_c_on_the_command_line_saves_and_goes_on_from_there(tmp_path: Path) -> None:
    words = ["data.num_train=640", "train.steps=100000", "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "stabkit", "train", "tiny", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    status = tmp_path / "run" / "status.json"
    while not (status.exists() and '"step": 0,' not in status.read_text()):
        assert time.monotonic() < deadline, "no step in ten minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "stopped by SIGINT at step" in said
    assert "the same command goes on from there" in said
    assert '"state": "preempted"' in status.read_text()
