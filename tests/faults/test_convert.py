"""`stabkit convert` killed, or on a full disk, at a write operation: no run or the whole run."""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabkit
from stabkit.cli import main
from stabkit.rundir import find_runs
from tests.faults.children import Run, Tell, children
from tests.faults.writes import die_at, full_at

pytestmark = pytest.mark.processes

NEVER_FULL = 3  # exit code: the conversion ended before the operation that was to fail
Convert = Callable[[Path, Path, int], int]  # source, output folder, number of the operation


def converted(source: Path, out: Path) -> int:
    return main(["convert", str(source), "--out", str(out)])


def killed(source: Path, out: Path, at: int) -> int:
    die_at(at)
    return converted(source, out)


def on_a_full_disk(source: Path, out: Path, at: int) -> int:
    writes = full_at(at, True)
    code = converted(source, out)
    return NEVER_FULL if writes.count < at else code


def warm_up() -> None:
    import stabkit.convert.convert
    import stabkit.store.writer  # noqa: F401


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with children(warm_up) as run:
        yield run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, each with layers, scalars, evaluations and an event."""
    folder = tmp_path_factory.mktemp("logs")
    for name in ("version_0", "version_1"):
        steps = np.arange(20)
        table = pd.DataFrame({"step": steps, "loss": 1 / (1 + steps), "val/knn": steps / 40})
        table.loc[7, "loss"] = np.inf
        table[["grad_norm/blocks.0", "grad_norm/head"]] = 1.0
        (folder / name).mkdir()
        table.to_csv(folder / name / "metrics.csv", index=False)
    return folder


def contents(folder: Path) -> dict[str, pd.DataFrame]:
    """Return what a search for runs finds there."""
    found = {}
    for path in find_runs(folder):
        run = stabkit.open_run(path)
        for table in ("signals", "scalars", "evals"):
            found[f"{path.name} {table}"] = getattr(run, table)()
        found[f"{path.name} events"] = pd.DataFrame(run.log_entries()).drop(columns="time")
        found[f"{path.name} source"] = pd.DataFrame([str(run.dir.read_meta())])
    return found


def assert_same(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    assert found.keys() == expected.keys()
    for name, frame in found.items():
        pd.testing.assert_frame_equal(frame, expected[name], check_exact=True)


@pytest.fixture(scope="module")
def expected(
    run: Run, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("expected")
    assert run(converted, source, folder / "out") == 0
    whole = contents(folder)
    assert len(whole) == 10
    assert not any(frame.empty for frame in whole.values())
    return whole


SOME = [pytest.param(1, id="every one", marks=pytest.mark.slow), pytest.param(16, id="some")]


def failures(
    run: Run, fail: Convert, source: Path, out: Path, every: int, done: int
) -> Iterator[int]:
    """Yield the exit code of conversions that fail at write operation 1, 1 + every, and so on.

    It ends with the exit code `done`: that conversion has no such operation and is whole.
    """
    count = 0
    while (code := run(fail, source, out, 1 + count * every)) != done:
        count += 1
        yield code
    assert count * every > 50


@pytest.mark.parametrize("every", SOME)
def test_killed_at_a_write_operation(
    run: Run,
    source: Path,
    expected: dict[str, pd.DataFrame],
    tmp_path: Path,
    every: int,
    tell: Tell,
) -> None:
    kills, folder = 0, tmp_path / "runs"
    folder.mkdir()
    for code in failures(run, killed, source, folder / "out", every, done=0):
        assert code == -signal.SIGKILL
        kills += 1
        if not (folder / "out").exists():
            assert contents(folder) == {}
            assert run(converted, source, folder / "out") == 0
            assert [path.name for path in folder.iterdir()] == ["out"], "leftovers are removed"
        assert_same(contents(folder), expected)
        shutil.rmtree(folder)
        folder.mkdir()
    assert_same(contents(folder), expected)
    tell(f"kills of convert: {kills} at write operations, no run or the whole run after each")


@pytest.mark.parametrize("every", SOME)
def test_a_full_disk_at_a_write_operation(
    run: Run,
    source: Path,
    expected: dict[str, pd.DataFrame],
    tmp_path: Path,
    every: int,
    tell: Tell,
) -> None:
    full, folder = 0, tmp_path / "runs"
    folder.mkdir()
    for code in failures(run, on_a_full_disk, source, folder / "out", every, done=NEVER_FULL):
        assert code == 1
        assert not list(folder.iterdir()), "nothing stays of it"
        full += 1
    assert_same(contents(folder), expected)
    tell(f"full disk under convert: at {full} write operations, nothing left after each")


def test_a_disk_too_full_to_put_the_run_in_its_place_is_no_wrong_request(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", refuses)
    assert converted(source, tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
