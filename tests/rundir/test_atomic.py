"""A file is there whole or as it was before."""

import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from stabkit.rundir import RunDir, Status, atomic_write, whole
from tests.full import no_room
from tests.monitor.toy import full_disk


@pytest.mark.parametrize("how", ["a link", "a second name", "not a byte of room"])
def test_what_cannot_be_written_over_stays_as_it_was(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = RunDir(tmp_path / "run"), tmp_path / "other"
    run.path.mkdir()
    run.write_status(Status("running", 3, 10))
    before = run.status_file.read_bytes()
    if how == "a link":
        run.status_file.rename(other)
        run.status_file.symlink_to(other)
    if how == "a second name":
        other.hardlink_to(run.status_file)
    no_room(monkeypatch)
    with full_disk() if how == "not a byte of room" else nullcontext(), pytest.raises(OSError):  # noqa: PT011
        run.write_status(Status("failed", 4, 10, reason="why"))
    assert run.status_file.read_bytes() == before


def _die_in_replace(path: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    atomic_write(path, b"new" * 1000)


def test_a_kill_in_the_middle_of_a_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    process = multiprocessing.get_context("fork").Process(target=_die_in_replace, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    atomic_write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "a leftover is reused, then gone"


def test_a_temporary_file_is_never_opened_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if its name is guessed, or a name of earlier versions is planted."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    for name in ("status.json", "meta.json", "config.yaml"):
        (run / f".{name}.tmp").symlink_to(victim)
        (run / name).symlink_to(victim)
        atomic_write(run / name, b"new")
        assert not (run / name).is_symlink()
    assert victim.read_text() == "precious"
    foreseen = tmp_path / f".report.html.stabkit-{bytes(8).hex()}.tmp"
    foreseen.symlink_to(victim)
    monkeypatch.setattr(os, "urandom", bytes)
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "report.html", b"new")
    assert victim.read_text() == "precious"
    assert foreseen.is_symlink()


def test_a_file_has_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / ("ü" * 120), b"")
    finally:
        os.umask(before)
    assert (tmp_path / ("ü" * 120)).stat().st_mode & 0o777 == 0o640


def test_what_kills_left_half_written_does_not_pile_up(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    dead = [f"{f}.x.stabkit-{i:016x}.tmp" for i, f in enumerate(("", "layers/", "checkpoints/"))]
    for name in dead:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".theirs.tmp").touch()  # a folder may be shared with others
    with whole(tmp_path / "alive") as file:
        file.write(b"whole")
        with run.lock():
            assert not [name for name in dead if (tmp_path / name).exists()]
    assert (tmp_path / "alive").read_bytes() == b"whole"
    assert (tmp_path / ".theirs.tmp").exists()
    with pytest.raises(ValueError, match="no"), whole(tmp_path / "alive") as file:
        raise ValueError("no")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"alive", ".theirs.tmp", ".lock", "layers", "checkpoints"}
