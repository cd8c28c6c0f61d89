"""Signals in a step: some ask for a stop and lose no step, others kill; all go on bit-equal."""

import signal
from pathlib import Path

import pytest

from stabkit.rundir import RunDir
from tests.faults.children import Run
from tests.faults.training import CONFIG, assert_bit_equal, signalled, whole

pytestmark = pytest.mark.slow
ASK = ("SIGTERM", "SIGINT", "SIGUSR2")
KILL = ("SIGHUP", "SIGUSR1", "SIGQUIT", "SIGXCPU", "SIGALRM", "SIGABRT", "SIGSEGV")
STEPS = (1, 4, 5)


@pytest.mark.parametrize("name", ASK)
def test_one_that_asks_for_a_stop(run: Run, unbroken: Path, tmp_path: Path, name: str) -> None:
    for at in STEPS:
        folder = tmp_path / str(at)
        assert run(signalled, folder, signal.Signals[name], at) == 0
        status = RunDir(folder).read_status()
        assert status is not None
        assert (status.state, status.step) == ("preempted", at)
        assert run(whole, folder) == 0
        assert_bit_equal(folder, unbroken)


@pytest.mark.parametrize("name", KILL)
def test_one_that_kills(run: Run, unbroken: Path, tmp_path: Path, name: str) -> None:
    for at in STEPS:
        folder = tmp_path / str(at)
        assert run(signalled, folder, signal.Signals[name], at) == -signal.Signals[name]
        assert RunDir(folder).standing() == "lost"
        assert run(whole, folder) == 0
        assert_bit_equal(folder, unbroken)


def test_one_that_python_ignores(run: Run, unbroken: Path, tmp_path: Path) -> None:
    assert run(signalled, tmp_path, signal.SIGPIPE, CONFIG.train.steps // 2) == 0
    assert_bit_equal(tmp_path, unbroken)
