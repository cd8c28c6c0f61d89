"""SIGKILL, or a full disk, at every write operation of a Monitor in somebody's loop."""

import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import stabkit
from stabkit.rundir import RunDir
from tests.faults.children import Run, Tell, children
from tests.faults.writes import die_at, full_at
from tests.monitor.toy import Toy
from tests.train.test_resume import assert_equal_trees

pytestmark = pytest.mark.processes

STEPS, SAVED = 10, (4, 8)
NEVER_FULL = 3
KEYS = {"layers": ["step", "depth"], "scalars": ["step", "name"], "evals": ["step"]}


def trained(folder: Path, toy: Toy) -> None:
    """Run the loop of docs/monitor.md: flush, then save its own checkpoint, and resume from it."""
    checkpoint = folder / "own.pt"
    first = 0
    if checkpoint.exists():
        first, model, optimizer, data = torch.load(checkpoint)
        toy.model.load_state_dict(model)
        toy.optimizer.load_state_dict(optimizer)
        toy.data.set_state(data)
    with toy.monitor(folder, first_step=first) as monitor:
        monitor.on("nonfinite", "mark")
        for step in range(first, STEPS):
            toy.steps(1)
            # a loss that is no number is an event of the run
            monitor.log(loss=float("nan") if step in (2, 5) else toy.losses[-1])
            if step % 4 == 0:
                classes = torch.arange(8) % 3
                monitor.log_eval(
                    step, "knn_heldout", classes, classes.roll(step // 4), chance=1 / 3
                )
            if step + 1 in SAVED:
                monitor.flush()
                state = [step + 1, toy.model.state_dict(), toy.optimizer.state_dict()]
                torch.save([*state, toy.data.get_state()], folder / ".own.pt")
                os.replace(folder / ".own.pt", checkpoint)


def whole(folder: Path) -> None:
    trained(folder, Toy())


def killed(folder: Path, at: int) -> None:
    die_at(at)
    whole(folder)


def on_a_disk_full_for_a_moment(folder: Path, at: int) -> int:
    """Check that the training is not disturbed, whatever the Monitor could not write."""
    toy = Toy()
    monitor = toy.monitor(folder)
    writes = full_at(at, False)
    toy.steps(STEPS, monitor)
    monitor.close()
    toy.assert_undisturbed()
    return 0 if writes.count >= at else NEVER_FULL


def plain(folder: Path) -> None:
    toy = Toy()
    with toy.monitor(folder) as monitor:
        toy.steps(STEPS, monitor)


def warm_up() -> None:
    os.fsync = lambda file: None
    with tempfile.TemporaryDirectory() as folder:
        whole(Path(folder))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with children(warm_up) as run:
        yield run


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read as anybody would; whatever is left out with a warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = stabkit.open_run(folder)
        frames = {"layers": run.signals(), "scalars": run.scalars(), "evals": run.evals()}
    for name, keys in KEYS.items():
        frame = frames[name]
        text = {c: str for c in ("layer", "name", "metric") if c in frame}
        frames[name] = frame.astype(text).sort_values(keys, ignore_index=True)
    return frames


def events(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "time"} for e in RunDir(folder).read_entries()]


def assert_prefix(folder: Path, unbroken: Path) -> None:
    """All rows of the first so many steps of a table, and no other."""
    expected = tables(unbroken)
    found = tables(folder) if any((folder / name).exists() for name in KEYS) else {}
    for name, frame in found.items():
        if frame.empty:
            continue
        steps = frame["step"].nunique()
        ends = sorted(expected[name]["step"].unique())[:steps]
        first = expected[name][expected[name]["step"].isin(ends)].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, first, check_exact=True)
    assert events(folder) == events(unbroken)[: len(events(folder))]


def assert_same(folder: Path, unbroken: Path) -> None:
    found, expected = tables(folder), tables(unbroken)
    for name, frame in found.items():
        pd.testing.assert_frame_equal(frame, expected[name], check_exact=True)
    assert events(folder) == events(unbroken)
    assert_equal_trees(torch.load(folder / "own.pt"), torch.load(unbroken / "own.pt"))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_at_every_write_operation(run: Run, tmp_path: Path, tell: Tell) -> None:
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert run(whole, unbroken) == 0
    assert [e["step"] for e in events(unbroken)] == [2, 5]
    kills = 0
    while (code := run(killed, folder, kills + 1)) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        if folder.exists():
            assert_prefix(folder, unbroken)
        assert run(whole, folder) == 0, kills
        assert_same(folder, unbroken)
        shutil.rmtree(folder)
    assert kills > 100
    tell(f"kills of a Monitor: {kills} at write operations, all readable and then bit-equal")


@pytest.mark.slow
def test_a_disk_full_for_a_moment(run: Run, tmp_path: Path, tell: Tell) -> None:
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert run(plain, unbroken) == 0
    at = 0
    while (code := run(on_a_disk_full_for_a_moment, folder, at + 1)) != NEVER_FULL:
        at += 1
        assert code == 0, at
        for name, frame in tables(folder).items():
            pd.testing.assert_frame_equal(frame, tables(unbroken)[name], check_exact=True)
        assert {e["kind"] for e in events(folder)} <= {"write_failed"}
        shutil.rmtree(folder)
    assert at > 50
    tell(f"full disk under a Monitor: at {at} write operations, every row there in the end")
