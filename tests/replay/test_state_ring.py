"""A loop of one's own goes back, and makes the same steps again bit for bit."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.rundir import kept_states
from tests.full import no_room, small_disk
from tests.train.test_resume import assert_equal_trees


class Loop:
    """A training that draws from every global generator, with a schedule and two optimizers."""

    def __init__(self, folder: Path, every: int = 5, most: int = 4) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)
        )
        self.optimizers = [
            torch.optim.AdamW(self.model[0].parameters()),
            torch.optim.SGD(self.model[3].parameters(), lr=0.1, momentum=0.9),
        ]
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizers[1], 3)
        self.ring = stabkit.StateRing(
            self.model, self.optimizers, folder, every=every, most=most, schedule=self.schedule
        )

    def run(self, first: int, end: int) -> list[Tensor]:
        losses = []
        for step in range(first, end):
            self.ring.keep(step)
            self.ring.wait()  # these steps are shorter than a write
            shift = random.random() + np.random.rand()
            loss = (self.model(torch.randn(6, 4)) + shift).square().mean()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return losses


@pytest.mark.parametrize("at", [20, 33, 40])
def test_after_a_restore_the_steps_are_the_same_bit_for_bit(tmp_path: Path, at: int) -> None:
    loop = Loop(tmp_path)
    losses = loop.run(0, 41)
    end = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    step = loop.ring.restore(at)
    assert step == max(s for s in loop.ring.steps if s <= at)
    assert_equal_trees(loop.run(step, 41), losses[step:])
    assert_equal_trees(dict(loop.model.state_dict()), end)


def test_keeping_changes_nothing(tmp_path: Path) -> None:
    found = []
    for every in (1, 1000):
        random.seed(0)
        np.random.seed(0)
        found.append(Loop(tmp_path / str(every), every).run(1, 20))
    assert_equal_trees(*found)


@pytest.mark.lengthy
def test_a_pinned_state_stays(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run(0, 23)
    loop.ring.pin(22)
    loop.run(23, 200)
    assert {15, 20} <= set(loop.ring.steps)
    assert len(loop.ring.steps) == 6
    assert loop.ring.restore(22) == 20
    for state in kept_states(tmp_path / "states"):
        assert torch.load(state.path, weights_only=True)["step"] == state.step


@pytest.mark.lengthy
def test_beside_a_monitor_an_event_pins(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with stabkit.Monitor(loop.model, loop.optimizers, tmp_path, flush_every=5) as monitor:
        monitor.on("nonfinite", lambda event: loop.ring.pin(event.step))
        loop.run(0, 17)
        with torch.no_grad():
            loop.model[3].weight.fill_(torch.nan)
        loop.run(17, 40)
    pinned = [state.step for state in kept_states(tmp_path / "states") if state.pinned]
    assert pinned
    assert max(pinned) <= 17


def test_a_full_disk_is_told_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "stabkit"):
        no_room(patch)
        loop.run(0, 3)
        assert loop.ring.steps == []
    assert "the state of step 0 is not kept: [Errno 28] No space left" in caplog.text
    loop.run(3, 11)
    assert loop.ring.steps == [5, 10]


def test_on_a_small_disk_the_newest_states_are_kept_and_rows_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(tmp_path, most=12)
    loop.run(0, 6)
    file = kept_states(tmp_path / "states")[-1].path
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "stabkit"):
        small_disk(patch, tmp_path / "states", 5 * file.stat().st_size)
        loop.run(6, 41)
    assert [record.getMessage() for record in caplog.records] == [
        "stabkit: the disk is nearly full: fewer states are kept"
    ]
    assert len(loop.ring.steps) == 3
    assert loop.ring.steps[-2:] == [35, 40]


def test_a_damaged_state_and_one_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run(0, 6)
    other = stabkit.StateRing(nn.Linear(2, 2), loop.optimizers, tmp_path)
    with pytest.raises(ValueError, match="does not fit this training"):
        other.restore(4)
    file = kept_states(tmp_path / "states")[-1].path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-.*\.pt: damaged"):
        loop.ring.restore(5)


def test_wrong_requests_say_what_would_be_right(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with pytest.raises(ValueError, match="no state at or before 3; there are none at all"):
        loop.ring.restore(3)
    with pytest.raises(TypeError, match="loader has no state_dict"):
        stabkit.StateRing(loop.model, loop.optimizers, tmp_path, loader=[1])
    schedule = torch.optim.lr_scheduler.LambdaLR(loop.optimizers[0], lambda _: 1.0)
    schedule.state_dict = lambda: {"act": Loop}  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError, match="more than tensors and plain data"):
        stabkit.StateRing(loop.model, loop.optimizers, tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="every must be 1 step or more, got 0"):
        stabkit.StateRing(loop.model, loop.optimizers, tmp_path, every=0)
