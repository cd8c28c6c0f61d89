"""A hundred random pairs of a run and a kept state: each replay from there is the run bit for bit.

The runs differ in method, optimizer, clipping and seed. Every other one was preempted, once or
twice, and four were made by three processes.
"""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stabkit.config import RunConfig
from stabkit.replay import plan
from stabkit.replay.replay import replay
from stabkit.rundir import RunDir, kept_states
from stabkit.train import loop
from stabkit.train.loop import train
from stabkit.train.stopping import Stop
from tests.conftest import small_config
from tests.train.processes import exit_codes, start

pytestmark = pytest.mark.slow
STATES = 5  # replayed of each run
STEPS = 4  # in a replay, at least
METHODS = ("moco", "simclr", "byol", "supervised")
OPTIMIZERS = (
    ("optim.name=adamw",), ("optim.name=stable_adamw",), ("optim.name=lamb",), ("optim.name=lars",),
    ("optim.clip=global", "optim.clip_at=1.0"), ("optim.clip=zclip", "optim.clip_at=2.5"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def from_the_state_itself(monkeypatch: pytest.MonkeyPatch, same_threads: None) -> None:
    """Let a replay begin at the state before the step."""
    monkeypatch.setattr(plan, "LEAD", 0)


def drawn(rng: np.random.Generator, batch: int) -> RunConfig:
    return small_config(
        f"method.name={rng.choice(METHODS)}", *OPTIMIZERS[rng.integers(len(OPTIMIZERS))],
        f"seed={rng.integers(1000)}", f"train.batch={batch}", "runtime.threads=1",
        f"runtime.checkpoint_every={rng.integers(1, 4)}", "runtime.keep_states=12",
    )  # fmt: skip


def train_with_stops(config: RunConfig, rundir: RunDir, stops: list[int]) -> None:
    """Train to the end, preempted in each of these steps."""
    make_step = loop.train_step
    for at in stops:
        stop = Stop()

        def step_then_stop(*arguments: Any, at: int = at, stop: Stop = stop) -> None:
            make_step(*arguments)
            stop.signal = signal.SIGTERM if arguments[4] == at else None

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "train_step", step_then_stop)
            assert train(config, rundir, stop).state == "preempted"
    assert train(config, rundir).state == "done"


def begins(run: Path, rng: np.random.Generator) -> list[int]:
    steps = [s.step for s in kept_states(RunDir(run).states_folder) if s.step < 24 - STEPS]
    assert len(steps) >= STATES
    return [int(step) for step in rng.choice(steps, STATES, replace=False)]


@pytest.mark.parametrize("number", range(16))
def test_every_replay_of_a_run_is_the_run(number: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(number)
    config, rundir = drawn(rng, 8), RunDir(tmp_path / "run")
    stops = sorted(int(s) for s in rng.choice(range(2, 20), number % 4 % 3, replace=False))
    train_with_stops(config, rundir, stops)
    for step in begins(rundir.path, rng):
        done = replay(rundir.path, str(step), tmp_path / f"from-{step}", until=step + STEPS)
        assert done is not None
        assert (done.plan.start, done.rows) == (step, STEPS)
        assert done.states, "a later state was compared as well"


def train_here(folder: Path, number: int) -> None:
    train(drawn(np.random.default_rng(number), 12), RunDir(folder))


def replay_here(folder: Path, step: int) -> None:
    plan.LEAD = 0
    replay(folder, str(step), folder.parent / f"from-{step}", until=step + STEPS)


@pytest.mark.processes
@pytest.mark.parametrize("number", range(16, 20))
def test_every_replay_of_a_run_of_three_processes_is_the_run(number: int, tmp_path: Path) -> None:
    assert exit_codes(start(3, train_here, tmp_path / "run", number)) == [0, 0, 0]
    for step in begins(tmp_path / "run", np.random.default_rng(number)):
        # processes of their own: a group cannot be joined twice
        assert exit_codes(start(3, replay_here, tmp_path / "run", step)) == [0, 0, 0]
        facts = json.loads((tmp_path / f"from-{step}" / "replay.json").read_text())
        assert facts["equal"]["rows"] == STEPS
        assert facts["equal"]["states"]
