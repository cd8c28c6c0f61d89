"""Several Monitors, one after the other or at a time, and what they leave behind."""

import gc
import os
import threading
import tracemalloc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.monitor.monitor import Monitor
from tests.monitor.toy import Toy, assert_whole, kinds, written


def hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.fixture
def others() -> set[threading.Thread]:
    """Return the threads of Monitors that earlier tests of this process left open."""
    return threads()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "stabkit"}


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_monitors_of_one_training_record_the_same(tmp_path: Path, first_out: int) -> None:
    torch.manual_seed(0)
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    pair = [toy.monitor(tmp_path / name, scaler=scaler) for name in ("a", "b")]
    for step in range(8):
        if step == 5:
            pair[first_out].close()
        loss = toy.model(torch.randn(16, 4, generator=toy.data)).square().mean()
        toy.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(toy.optimizer)
        scaler.update()
        for monitor in pair:
            monitor.log(loss=loss)
    pair[1 - first_out].close()
    runs = [stabkit.open_run(tmp_path / name) for name in ("a", "b")]
    short, long = (runs[i].signals() for i in (first_out, 1 - first_out))
    assert short.equals(long[long["step"] < 5])
    assert long["step"].max() == 7
    assert hooks(toy.optimizer) == 0
    bare = Toy()
    bare.steps(8)
    np.testing.assert_array_equal(runs[1 - first_out].scalar("loss"), bare.losses)
    assert toy.state().equal(bare.state())  # a power of two scales exactly


def test_a_second_monitor_in_an_open_folder(tmp_path: Path, others: set[threading.Thread]) -> None:
    toy = Toy()
    first = toy.monitor(tmp_path)
    second = toy.monitor(tmp_path)  # nothing was recorded: as a cell run again before training
    toy.steps(5, second)
    first.log(first=1.0)  # closed
    before = hooks(toy.optimizer)
    with pytest.raises(ValueError, match=r"another Monitor of this process .* 5 steps so far"):
        toy.monitor(tmp_path)
    assert hooks(toy.optimizer) == before == 2
    second.close()
    with pytest.raises(ValueError, match="holds steps 0 to 4 already; pass first_step=5 to go on"):
        toy.monitor(tmp_path)
    with toy.monitor(tmp_path, first_step=5) as third:
        toy.steps(5, third)
        fourth = toy.monitor(tmp_path, first_step=10)  # closes the third, whose rows are kept
        toy.steps(5, fourth)
        fourth.close()
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()
    assert threads() <= others


@pytest.mark.parametrize(("first_step", "expected"), [(0, [0, 1]), (3, [0, 1, 2, 3, 4]),
                                                      (9, [0, 1, 2, 3, 9, 10])])  # fmt: skip
def test_where_a_folder_is_gone_on_with(
    tmp_path: Path, first_step: int, expected: list[int]
) -> None:
    """Beyond the last step too: steps that were not recorded are a gap."""
    toy = Toy()
    for first, count in ((0, 4), (first_step, 2)):
        with toy.monitor(tmp_path, first_step=first) as monitor:
            toy.steps(count, monitor)
            assert monitor.step == first + count
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").index.tolist() == expected
    assert np.unique(run.signals()["step"]).tolist() == expected


def test_closed_twice_entered_twice_and_used_afterwards(tmp_path: Path) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path, signals=["basic", "noise"], samples_per_step=16)
    with monitor, monitor:
        toy.steps(4, monitor)
    monitor.close()
    monitor.flush()
    toy.steps(4, monitor)
    monitor.before_clipping()
    monitor.micro_batch()
    monitor.on("nonfinite", "stop")
    monitor.log_eval(3, "knn", torch.ones(3), torch.ones(3))
    assert monitor.should_stop is False
    assert monitor.step == 4
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").tolist() == toy.losses[:4]
    assert run.evals().empty
    assert hooks(toy.optimizer) == 0
    toy.assert_undisturbed()


def test_what_cannot_be_monitored_leaves_nothing_behind(
    tmp_path: Path, others: set[threading.Thread]
) -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.param_groups = optimizer.param_groups

        def step(self) -> None:
            pass

    toy = Toy()
    bad: list[tuple[object, dict[str, object], str]] = [
        (Wrapper(toy.optimizer), {}, "Wrapper has no step hooks"),
        ([toy.optimizer, Wrapper(toy.optimizer)], {}, "Wrapper has no step hooks"),
        (toy.model, {}, r"is a model, where the optimizer goes: Monitor\(model, optimizer, ...\)"),
        ([], {}, "give an optimizer"),
        (toy.optimizer, {"signals": "basics"}, "'basics' is neither a level"),
        (toy.optimizer, {"signals": "noise"}, "pass samples_per_step"),
        (toy.optimizer, {"signals": "alignment"}, "needs probe="),
        (toy.optimizer, {"probe_every": 0}, "probe_every must be 1"),
        (toy.optimizer, {"probe": torch.ones(2, 4)}, "probe must be stabkit.Probe.* type Tensor"),
        *[
            (toy.optimizer, {"first_step": wrong}, "first_step must be the number .* got")
            for wrong in (-1, 1.5, float("nan"), "2", True, 10**25)
        ],
        *[
            (toy.optimizer, {name: wrong}, f"{name} must be 1 s.*, got {wrong!r}")
            for name in ("flush_every", "full_every", "probe_every", "samples_per_step")
            for wrong in (0, 2.5, "64", True)
        ],
    ]
    for optimizer, options, message in bad:
        with pytest.raises((TypeError, ValueError), match=message):
            stabkit.Monitor(toy.model, optimizer, tmp_path / "run", **options)  # type: ignore[arg-type]
        assert hooks(toy.optimizer) == 0
        assert not list(tmp_path.iterdir())
        assert threads() <= others


@pytest.mark.lengthy
def test_a_monitor_that_is_let_go_of_writes_what_it_has_and_lives_no_longer(
    tmp_path: Path,
) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path)
    toy.steps(5, monitor)
    out = monitor._recording.out
    assert out is not None
    gone = weakref.ref(monitor)
    kept = toy.model, toy.losses
    del monitor, toy
    gc.collect()
    assert gone() is None
    out._thread.join(600)
    assert not out._thread.is_alive()
    del out
    toy = Toy()
    toy.model, toy.losses = kept
    assert_whole(tmp_path, toy)
    with Toy().monitor(tmp_path, first_step=5):  # the folder is free
        pass


@pytest.mark.lengthy
def test_fifty_monitors_leave_no_thread_no_hook_and_no_open_file(
    tmp_path: Path, others: set[threading.Thread]
) -> None:
    toy = Toy()
    with toy.monitor(tmp_path / "first") as monitor:
        toy.steps(1, monitor)
    del monitor
    gc.collect()
    files, objects = len(os.listdir("/proc/self/fd")), len(live(Monitor))
    for number in range(50):
        with toy.monitor(tmp_path / str(number)) as monitor:
            toy.steps(1, monitor)
    del monitor
    assert threads() <= others
    assert hooks(toy.optimizer) == 0
    gc.collect()
    assert len(live(Monitor)) == objects
    assert len(os.listdir("/proc/self/fd")) == files
    toy.assert_undisturbed()


def live(kind: type) -> list[object]:
    # not isinstance, which some objects answer with a warning
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]


@pytest.mark.lengthy
def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """Allow half of what keeping one object a step would take.

    One object is at least a reference (8 bytes) and a number (24 bytes): 16 kB in 500 steps. It
    shows in every stretch. Free lists fill up in one stretch or another, so the least counts.
    """
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    images = torch.ones(1, 2)
    monitor = stabkit.Monitor(model, optimizer, tmp_path, flush_every=50)
    found = []

    def steps(count: int) -> None:
        for _ in range(count):
            loss = model(images).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss, other=1.0)
        written(monitor)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        found.append((traced, len(live(Tensor)), pa.total_allocated_bytes()))

    steps(300)
    tracemalloc.start()
    try:
        for _ in range(4):  # in the first, what was made before tracing began is replaced
            steps(500)
    finally:
        tracemalloc.stop()
        monitor.close()
    traced, tensors, arrow = zip(*found, strict=True)
    assert min(after - before for before, after in pairwise(traced[1:])) < 500 * 32 / 2
    assert tensors[-1] == tensors[0]
    assert arrow[-1] <= arrow[0] + 2**16  # rows of an interval: 50 steps of 8 columns, 3 kB
    assert kinds(tmp_path) == []
    assert len(stabkit.open_run(tmp_path).scalar("other")) == 2300
