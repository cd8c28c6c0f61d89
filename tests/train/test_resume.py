"""A run that is killed with SIGKILL and started again equals the unbroken run bit for bit."""

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import stabkit
import stabkit.train.loop as loop
from stabkit.config import RunConfig
from stabkit.rundir import RunDir
from stabkit.train import state as state_module
from stabkit.train.loop import train
from tests.conftest import small_config

pytestmark = pytest.mark.processes

# New processes are forked from a server that has imported torch once: seconds saved for each kill.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stabkit.train.loop", "torch._dynamo", "tests.conftest"])

CONFIG = small_config()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    function: Callable[..., Any], number: int, act: Callable[..., None]
) -> Callable[..., Any]:
    """Return `function`, except that its `number`-th call (from 1) runs `act` instead."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return act(*args, **kwargs) if calls == number else function(*args, **kwargs)

    return wrapped


def before_a_step(number: int) -> None:
    loop.train_step = at_call(loop.train_step, number, lambda *_: die())


def signalled_in_a_step(number: int, which: signal.Signals) -> None:
    """Send the signal while a step is computed: the step is finished, then everything is saved."""
    step = loop.train_step

    def act(*args: Any) -> None:
        os.kill(os.getpid(), which)
        step(*args)

    loop.train_step = at_call(step, number, act)


def terminated_in_a_step(number: int) -> None:
    signalled_in_a_step(number, signal.SIGTERM)


def preempted_in_a_step(number: int) -> None:
    signalled_in_a_step(number, signal.SIGUSR2)


def before_a_rename(number: int) -> None:
    os.replace = at_call(os.replace, number, lambda *_: die())


def after_a_rename(number: int) -> None:
    replace = os.replace

    def act(*args: Any) -> None:
        replace(*args)
        die()

    os.replace = at_call(replace, number, act)


def in_half_a_table(number: int) -> None:
    import stabkit.store.writer as writer

    def act(part: str, *_: Any) -> None:
        path = Path(part)
        path.with_name(f".{path.name}.tmp").write_bytes(b"PAR1 and then nothing more")
        die()

    writer.write_part = at_call(writer.write_part, number, act)


def in_half_a_checkpoint(number: int) -> None:
    def act(_: Any, file: Any) -> None:
        file.write(b"PK and then nothing more")
        file.flush()
        die()

    torch.save = at_call(torch.save, number, act)


def _child(folder: Path, config: RunConfig, plan: Callable[[int], None] | None, at: int) -> None:
    if plan is not None:
        plan(at)
    train(config, RunDir(folder))


def run(folder: Path, plan: Callable[[int], None] | None = None, at: int = 0) -> int | None:
    """Train in a process of its own, and return its exit code."""
    process = PROCESSES.Process(target=_child, args=(folder, CONFIG, plan, at))
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(folder) == 0
    return folder


def assert_same_run(left: Path, right: Path) -> None:
    for table in ("signals", "scalars", "evals"):
        frames = []
        for folder in (left, right):
            frame = getattr(stabkit.open_run(folder), table)().astype({"step": "int64"})
            if table == "scalars":  # a clock's, and what only runs with kept states have
                frame = frame[~frame["name"].isin(["images_per_s", "weights_bits"])]
                frame["name"] = frame["name"].astype(str)
            keys = [c for c in ("step", "depth", "name", "metric") if c in frame]
            frames.append(frame.sort_values(keys).reset_index(drop=True))
        assert not frames[1].duplicated(keys).any()
        pd.testing.assert_frame_equal(*frames, check_exact=True, check_categorical=False)
    states = [torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (left, right)]
    assert_equal_trees(states[0], states[1])


def assert_equal_trees(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert left.equal(right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_trees(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_equal_trees(one, other)
    else:
        assert left == right


def test_the_unbroken_run_is_complete(unbroken: Path) -> None:
    recorded = stabkit.open_run(unbroken)
    saved = torch.load(unbroken / "checkpoints/last.pt", weights_only=True)
    assert saved["step"] == CONFIG.train.steps
    steps, config = CONFIG.train.steps, CONFIG
    signals = recorded.signals()
    layers = signals["layer"].unique().tolist()
    assert layers == [
        "patch_embed",
        "cls_token",
        "pos_embed",
        "blocks.0",
        "blocks.1",
        "norm",
        "projector",
        "predictor",
    ]
    assert signals["step"].tolist() == np.repeat(np.arange(steps), len(layers)).tolist()
    for name in ("loss", "loss_nats", "loss_relative", "lr", "momentum", "grad_norm_total"):
        assert recorded.scalar(name).index.tolist() == list(range(steps)), name
    heldout = recorded.evals("knn_heldout")
    assert heldout["step"].tolist() == [0, 5, 10, 15, 20, 24]
    assert (heldout["n"] == config.knn.queries).all()
    assert (heldout["k"] == config.knn.k).all()
    assert recorded.evals("knn_bank")["step"].tolist() == [5, 10, 15, 20]
    total = recorded.scalar("grad_norm_total")
    squares = signals["grad_norm"].astype(float).pow(2).groupby(signals["step"]).sum()
    np.testing.assert_allclose(total, np.sqrt(squares), rtol=1e-6)


KILLS = [
    *((before_a_step, at) for at in (1, 4, 8, 15, 24)),
    *((before_a_rename, at) for at in (2, 5, 9, 14)),
    *((after_a_rename, at) for at in (6, 8, 11)),
    *((in_half_a_table, at) for at in (1, 2, 6)),
    *((in_half_a_checkpoint, at) for at in (1, 3)),
]


@pytest.mark.parametrize(("plan", "at"), KILLS, ids=lambda value: getattr(value, "__name__", value))
def test_a_killed_and_resumed_run_equals_the_unbroken_run(
    unbroken: Path, tmp_path: Path, plan: Callable[[int], None], at: int
) -> None:
    assert run(tmp_path, plan, at) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)


def test_a_torn_status_does_not_keep_a_run_from_going_on(unbroken: Path, tmp_path: Path) -> None:
    assert run(tmp_path, before_a_step, 9) == -signal.SIGKILL
    RunDir(tmp_path).status_file.write_bytes(b"")
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)


def test_a_run_killed_again_and_again_equals_the_unbroken_run(
    unbroken: Path, tmp_path: Path
) -> None:
    for at in (9, 5, 8):
        assert run(tmp_path, before_a_step, at) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)
    firsts = [attempt["first_step"] for attempt in RunDir(tmp_path).read_meta()["attempts"]]
    assert firsts == [0, 7, 7, 14]


@pytest.mark.parametrize("plan", [terminated_in_a_step, preempted_in_a_step])
def test_a_signal_loses_no_step(
    unbroken: Path, tmp_path: Path, plan: Callable[[int], None]
) -> None:
    """The run is stopped after steps 5, 6 and 15; each next attempt begins exactly there."""
    for at in (5, 1, 9):
        assert run(tmp_path, plan, at) == 0
        status = RunDir(tmp_path).read_status()
        assert status is not None
        assert status.state == "preempted"
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)
    firsts = [attempt["first_step"] for attempt in RunDir(tmp_path).read_meta()["attempts"]]
    assert firsts == [0, 5, 6, 15]
    kinds = [e["kind"] for e in RunDir(tmp_path).read_entries() if e["kind"] != "null_parameters"]
    assert kinds == ["start", *["preempted", "resume"] * 3, "done"]


def test_a_signal_in_the_last_step_lets_the_run_end(unbroken: Path, tmp_path: Path) -> None:
    assert run(tmp_path, terminated_in_a_step, CONFIG.train.steps) == 0
    assert_same_run(tmp_path, unbroken)


def files_limited_to(size: int) -> None:
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_fills_up_fails_the_run_and_loses_nothing(
    unbroken: Path, tmp_path: Path
) -> None:
    """Tables still fit and a checkpoint does not: the previous checkpoint stays whole."""
    assert run(tmp_path, before_a_step, 9) == -signal.SIGKILL
    checkpoint = RunDir(tmp_path).checkpoint_file
    before = checkpoint.read_bytes()
    assert run(tmp_path, files_limited_to, len(before) // 2) == 1
    assert checkpoint.read_bytes() == before
    status = RunDir(tmp_path).read_status()
    assert status is not None
    assert status.state == "failed"
    assert "File too large" in str(status.reason)
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("at", [2, 7, 24])
def test_a_deleted_folder_ends_the_run_and_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = tmp_path / "run"

    def act(*args: Any) -> None:
        while folder.exists():  # its rows are written by another thread
            shutil.rmtree(folder, ignore_errors=True)
        step(*args)

    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", at_call(step, at, act))
    with pytest.raises(FileNotFoundError, match="run's folder was deleted or moved"):
        train(CONFIG, RunDir(folder))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_deleted_while_its_checkpoint_is_made_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check that the folder is there and the write into it."""
    folder = tmp_path / "run"

    def made(*args: Any) -> dict[str, Any]:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        return whole_state(*args)

    whole_state = state_module.whole_state
    monkeypatch.setattr(state_module, "whole_state", made)
    with pytest.raises(FileNotFoundError):
        train(CONFIG, RunDir(folder))
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_in_the_place_of_the_runs_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is deleted and launched again while its old job still runs."""
    folder = tmp_path / "run"

    def act(*args: Any) -> None:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / ".lock").touch()
        step(*args)

    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", at_call(step, 8, act))
    with pytest.raises(FileNotFoundError, match="run's folder was deleted or moved"):
        train(CONFIG, RunDir(folder))
    assert [path.name for path in folder.iterdir()] == [".lock"]
