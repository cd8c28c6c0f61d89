"""The ring of kept states: what it holds, and that nothing it does can harm a run."""

import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from stabkit.rundir import KeptState, Ring, RunDir, kept_states
from stabkit.rundir import kept_states as found
from stabkit.rundir.kept_states import dispensable
from stabkit.store.writer import Writer
from stabkit.train import keeping, loop
from stabkit.train.alerts import Alerts
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.full import no_room, small_disk
from tests.train.test_resume import assert_same_run, at_call

RING = ("runtime.checkpoint_every=2", "runtime.keep_states=4")


def farthest(steps: list[int], every: int) -> float:
    """Return how many times farther back than an event the state before it stands, at the worst.

    The event is just before the next state; distances are those from the last state.
    """
    now, before = steps[-1], [0, *steps[:-1]]
    return max((now - a + every) / (now - b + every) for a, b in zip(before, steps, strict=True))


@pytest.mark.parametrize(("most", "every", "count", "factor"), [(8, 1, 1000, 5), (12, 7, 3000, 4)])
def test_distances_from_the_present_grow_by_a_bounded_factor(
    most: int, every: int, count: int, factor: float
) -> None:
    steps: list[int] = []
    for step in range(every, every * count, every):
        steps.append(step)
        if len(steps) > most:
            steps.pop(dispensable(steps, every))
        assert farthest(steps, every) <= factor
    assert len(steps) == most
    assert steps[-2:] == [step - every, step]


def test_the_ring_keeps_as_many_as_asked_and_the_pinned_ones_beside(tmp_path: Path) -> None:
    last, ring = tmp_path / "last.pt", Ring(tmp_path / "states", 4, 10)
    last.write_bytes(b"x")
    for step in range(10, 400, 10):
        ring.link(last, step)
        if step == 200:
            pinned = [state.step for state in ring.pin_before(185)]
    states = kept_states(ring.folder)
    assert [state.step for state in states if state.pinned] == pinned
    assert len(pinned) == 2
    assert max(pinned) <= 185
    assert sum(not state.pinned for state in states) == 4
    assert ring.pin_before(max(pinned)) == []
    assert ring.place(pinned[0]).name.startswith("pinned")


def test_no_more_are_pinned_than_kept(tmp_path: Path) -> None:
    last, ring = tmp_path / "last.pt", Ring(tmp_path / "states", 3, 1)
    last.write_bytes(b"x")
    for step in range(1, 10):
        ring.link(last, step)
    ring.pin_before(8)
    ring.link(last, 10)
    with pytest.raises(ValueError, match="2 states are pinned already; at most 3 may be"):
        ring.pin_before(10)


def test_a_disk_without_second_names_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    last, ring = tmp_path / "last.pt", Ring(tmp_path / "states", 3, 1)
    last.write_bytes(b"whole")
    ring.link(last, 1)
    assert [p.name for p in ring.folder.iterdir()] == ["step-00000001.pt"]
    assert ring.place(1).read_bytes() == b"whole"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(small_config("runtime.checkpoint_every=2"), RunDir(folder))
    return folder


@pytest.mark.lengthy
def test_a_run_keeps_checkpoints_and_is_the_same_run(tmp_path: Path, plain: Path) -> None:
    config, rundir = small_config(*RING), RunDir(tmp_path)
    train(config, rundir)
    states = kept_states(rundir.states_folder)
    assert len(states) == 4
    assert states[-1].step == 24
    for state in states:
        assert torch.load(state.path, weights_only=True)["step"] == state.step
    assert_same_run(tmp_path, plain)


def test_without_the_setting_there_is_no_folder(plain: Path) -> None:
    assert not RunDir(plain).states_folder.exists()


@pytest.mark.lengthy
def test_what_stands_before_an_event_is_pinned_and_told(tmp_path: Path) -> None:
    config, rundir = small_config(*RING), RunDir(tmp_path)
    train(config, rundir)
    keeping.pin_before(config, rundir, "dip", 21)
    pinned = [state.step for state in kept_states(rundir.states_folder) if state.pinned]
    assert len(pinned) == 2
    told = [event for event in rundir.read_entries() if event["kind"] == "pinned"]
    assert [event["step"] for event in told] == pinned
    assert {(event["cause"], event["onset"]) for event in told} == {("dip", 21)}


@pytest.mark.lengthy
def test_an_event_before_all_states_is_told_to_have_none(tmp_path: Path) -> None:
    config, rundir = small_config(*RING, "train.steps=4"), RunDir(tmp_path)
    train(config, rundir)
    keeping.pin_before(config, rundir, "dip", 1)
    (told,) = [event for event in rundir.read_entries() if event["kind"] == "not_pinned"]
    assert (told["step"], told["cause"]) == (1, "dip")
    assert "no state is kept of step 1 or before" in told["reason"]


@pytest.mark.lengthy
def test_an_event_that_is_found_while_a_run_trains_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(alerts: Alerts, step: int, correct: object) -> None:
        if step == 20:
            alerts._act("dip", 11)

    monkeypatch.setattr(Alerts, "add", found)
    rundir = RunDir(tmp_path)
    train(small_config(*RING), rundir)
    pinned = [state for state in kept_states(rundir.states_folder) if state.pinned]
    assert [state.step for state in pinned] == [8], "of the four, one stood before the onset"


@pytest.mark.lengthy
def test_a_resume_deletes_no_state(tmp_path: Path, plain: Path) -> None:
    config, rundir = small_config(*RING), RunDir(tmp_path)
    train(config, rundir)
    before = [state.step for state in kept_states(rundir.states_folder)]
    Ring(rundir.states_folder, 4, 2).pin_before(before[2])
    shutil.copy(kept_states(rundir.states_folder)[1].path, rundir.checkpoint_file)
    rundir.status_file.unlink()
    train(config, rundir)
    assert set(before[:3]) <= {state.step for state in kept_states(rundir.states_folder)}
    assert_same_run(tmp_path, plain)


@pytest.mark.lengthy
def test_on_a_full_disk_the_ring_makes_room_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    config, rundir = small_config(*RING), RunDir(tmp_path)
    save = loop.save_state

    def full_while_two_are_kept(*given: Any) -> None:
        if given[2] == 10 and len(found(rundir.states_folder)) > 1:
            raise OSError(28, "No space left on device")
        save(*given)

    monkeypatch.setattr(loop, "save_state", full_while_two_are_kept)
    train(config, rundir)
    told = next(e for e in rundir.read_entries() if e["kind"] == "states_given_up")
    assert (told["step"], told["count"]) == (10, 3)
    assert_same_run(tmp_path, plain)


@pytest.mark.lengthy
@pytest.mark.parametrize("files", [5.0, 6.5])
def test_a_ring_that_fills_the_disk_leaves_room_for_rows_and_checkpoints(
    files: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    rundir = RunDir(tmp_path)
    rest = sum(p.stat().st_size for p in plain.rglob("*") if p.suffix != ".pt")
    small_disk(
        monkeypatch, tmp_path, int(files * RunDir(plain).checkpoint_file.stat().st_size) + rest
    )
    train(small_config("runtime.checkpoint_every=2", "runtime.keep_states=12"), rundir)
    steps = [state.step for state in kept_states(rundir.states_folder)]
    assert 2 <= len(steps) < 6
    assert steps[-1] == 24
    assert any(event["kind"] == "states_given_up" for event in rundir.read_entries())
    assert_same_run(tmp_path, plain)


def test_no_room_is_made_in_a_folder_of_others(tmp_path: Path) -> None:
    others, last, ring = Ring(tmp_path / "others", 3, 1), tmp_path / "last.pt", tmp_path / "run"
    last.write_bytes(b"x")
    for step in range(1, 4):
        others.link(last, step)
    ring.mkdir()
    (ring / "states").symlink_to(others.folder)
    with pytest.MonkeyPatch.context() as patch:
        small_disk(patch, tmp_path, 0)
        assert Ring(ring / "states", 3, 1).leave_room(last) == 0
        assert len(kept_states(others.folder)) == 3
        assert others.leave_room(last) == 2


@pytest.mark.lengthy
def test_rows_that_find_no_room_get_it_from_the_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    config, rundir = small_config(*RING), RunDir(tmp_path)
    flush = Writer.flush

    def full_while_three_are_kept(writer: Writer) -> None:
        states = found(rundir.states_folder)
        if len(states) > 2 and states[-1].step == 8:
            raise OSError(28, "No space left on device")
        flush(writer)

    monkeypatch.setattr(Writer, "flush", full_while_three_are_kept)
    train(config, rundir)
    told = [e for e in rundir.read_entries() if e["kind"] == "states_given_up"]
    assert [(event["step"], event["count"]) for event in told] == [(10, 2)]
    assert_same_run(tmp_path, plain)


@pytest.mark.lengthy
def test_a_state_that_cannot_be_kept_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    def link(*_: Any, **__: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            no_room(patch)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ring, "link", at_call(Ring.link, 2, link))
    config, rundir = small_config(*RING), RunDir(tmp_path)
    train(config, rundir)
    told = [e for e in rundir.read_entries() if e["kind"] == "state_not_kept"]
    assert [event["step"] for event in told] == [4]
    assert "No space left" in told[0]["reason"]
    assert_same_run(tmp_path, plain)


def test_names_of_others_in_the_folder_are_no_states(tmp_path: Path) -> None:
    for name in (
        "step-1.pt",
        "step-00000001.pt.tmp",
        ".step-00000002.pt.x.tmp",
        "pinned-00000003.pt",
    ):
        (tmp_path / name).touch()
    assert kept_states(tmp_path) == [KeptState(3, True, tmp_path / "pinned-00000003.pt")]
    assert kept_states(tmp_path / "none") == []
