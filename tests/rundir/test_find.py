"""Runs below a folder."""

import os
import socket
import warnings
from pathlib import Path

import pytest

from stabkit.rundir import find_runs


def test_find_runs_goes_deep_but_not_into_runs_or_hidden_folders(tmp_path: Path) -> None:
    for name in ("b/run2", "a/x/run1", ".hidden/run3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "a/x/run1/checkpoints").mkdir()
    (tmp_path / "foreign/scalars").mkdir(parents=True)
    found = [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)]
    assert found == ["a/x/run1", "b/run2", "foreign"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_runs(tmp_path / "nothing")


def test_links_are_followed_to_runs_alone(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "runs", tmp_path / "scratch"
    for run in (folder / "here", scratch / "there", scratch / "many" / "one"):
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
    (folder / "run").symlink_to(scratch / "there")
    (folder / "many").symlink_to(scratch / "many")
    (folder / "disk").symlink_to("/")
    (folder / "layers").symlink_to("/")  # as a table is called
    (folder / "null").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        server.bind(str(folder / "socket"))
        assert find_runs(folder) == [folder / "here", folder / "run"]
    lines = sorted(str(warning.message).removeprefix(f"{folder}/") for warning in said)
    assert lines == [
        "disk: left out, a link to a folder that is no run",
        "layers: left out, a link to a folder that is no run",
        "many: left out, a link to a folder that is no run",
        "null: left out, a pipe, a socket or a device",
        "pipe: left out, a pipe, a socket or a device",
        "socket: left out, a pipe, a socket or a device",
    ]


@pytest.mark.lengthy
def test_folders_may_be_as_deep_as_they_like(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1500):
        deep = deep / "a"
        deep.mkdir()
    (deep / "config.yaml").touch()
    try:
        assert find_runs(tmp_path) == [deep]
    finally:  # pytest removes folders by recursion, and cannot remove these
        (deep / "config.yaml").unlink()
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent


def test_runs_below_a_config_of_the_projects_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "project/exp1/stabkit/scalars").mkdir(parents=True)
    (tmp_path / "project/exp1/stabkit/scalars/part-00000.parquet").touch()
    for name in ("project", "project/exp1", "waiting/checkpoints"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in ("project", "project/exp1", "waiting"):
        (tmp_path / name / "config.yaml").write_text("lr: 0.1\n")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["project/exp1/stabkit", "waiting"]
