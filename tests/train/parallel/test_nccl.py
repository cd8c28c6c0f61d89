"""What fixes the order of NCCL's sums, and a resume with other settings or on other nodes."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import stabkit.train.exactness as exactness
import stabkit.train.loop as loop
from stabkit.config import RunConfig
from stabkit.rundir import RunDir
from stabkit.train.parallel import nccl
from stabkit.train.parallel.nccl import CHOOSERS, PINNED, nccl_settings, pin_nccl
from stabkit.train.parallel.reduce import process_group
from stabkit.train.parallel.topology import in_words
from tests.conftest import small_config
from tests.train.processes import results

CONFIG = small_config("train.steps=12")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PINNED, *CHOOSERS):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


class GroupMade(Exception):
    """The process group would be made now."""


@pytest.mark.parametrize("cuda", [True, False])
def test_nccl_is_pinned_before_the_group_is_made_on_cuda(
    cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def make(backend: str) -> None:
        seen.append((backend, {name: os.environ.get(name) for name in PINNED}))
        raise GroupMade

    monkeypatch.setattr(dist, "init_process_group", make)
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GroupMade), process_group(cuda):
        pass
    expected = PINNED if cuda else dict.fromkeys(PINNED)
    assert seen == [("cpu:gloo,cuda:nccl" if cuda else "gloo", expected)]


def test_what_the_user_set_is_kept_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setenv("NCCL_MAX_NCHANNELS", "4")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")  # changes no sum
    pin_nccl()
    assert nccl_settings() == (
        "NCCL_ALGO=Tree, NCCL_PROTO=Simple, NCCL_NVLS_ENABLE=0, NCCL_MAX_NCHANNELS=4"
    )


def test_settings_in_the_files_of_nccl_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment wins over the user's file, and that over the site's."""
    monkeypatch.setattr(nccl, "SITE_FILE", tmp_path / "site")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NCCL_CONF_FILE", raising=False)
    pin_nccl()
    pinned = nccl_settings()
    (tmp_path / "site").write_text("NCCL_ALGO=Tree\nNCCL_NTHREADS=64\nNCCL_IB_HCA=mlx5\n")
    (tmp_path / ".nccl.conf").write_text("#NCCL_NET=Socket\nno setting\nNCCL_NTHREADS=128\n")
    assert nccl_settings() == f"{pinned}, NCCL_NTHREADS=128, NCCL_IB_HCA=mlx5"
    (tmp_path / "other").write_text("NCCL_NTHREADS=256")
    monkeypatch.setenv("NCCL_CONF_FILE", str(tmp_path / "other"))
    assert nccl_settings() == f"{pinned}, NCCL_NTHREADS=256, NCCL_IB_HCA=mlx5"


def test_another_setting_or_version_of_nccl_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(exactness, "world_size", lambda: 16)
    monkeypatch.setattr(exactness, "topology", lambda: "2 x 8")
    pin_nccl()
    before = exactness.circumstances(cuda, 1)
    assert (before["processes"], before["topology"]) == (16, "2 x 8")
    assert before["nccl"] == nccl_settings()
    assert exactness.changes(before, exactness.circumstances(cuda, 1)) == {}
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(exactness, "topology", lambda: "4 x 4")
    now = exactness.circumstances(cuda, 1)
    assert exactness.changes(before, now) == {
        "topology": ["2 x 8", "4 x 4"],
        "nccl": [before["nccl"], before["nccl"].replace("Ring", "Tree")],
        "libnccl": ["2.27.3", "2.28.9"],
    }


def test_one_process_has_neither_topology_nor_nccl() -> None:
    found = exactness.circumstances(torch.device("cpu"), 1)
    assert not found.keys() & {"topology", "nccl"}


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("aaaa", "1 x 4"),
        ("aabb", "2 x 2"),
        ("abcd", "4 x 1"),
        ("aaab", "3+1"),
        ("abab", "1+1+1+1 on 2 nodes"),
        ("aabbaa", "2+2+2 on 2 nodes"),
    ],
)
def test_a_topology_in_words(nodes: str, words: str) -> None:
    assert in_words(list(nodes)) == words


def train_on(nodes: str, folder: Path, config: RunConfig, stop_at: int | None = None) -> str:
    """Train on nodes with these names; return how it ended."""
    own = nodes[int(os.environ["RANK"])]
    socket.gethostname = lambda: own
    step = loop.train_step

    def act(*given: Any) -> None:
        if given[4] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*given)

    loop.train_step = act  # type: ignore[assignment]
    try:
        return loop.train(config, RunDir(folder)).state
    except Exception as error:
        return str(error)


@pytest.mark.processes
def test_a_resume_on_other_nodes_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert results(2, tmp_path / "1", train_on, "ab", run, CONFIG, 2) == ["preempted"] * 2
    assert RunDir(run).read_meta()["attempts"][0]["topology"] == "2 x 1"
    before = RunDir(run).meta_file.read_bytes()
    first, other = results(2, tmp_path / "2", train_on, "aa", run, CONFIG)
    assert "topology was 2 x 1, is 1 x 2" in first
    assert "--allow-inexact" in first
    assert other != "done"
    assert RunDir(run).meta_file.read_bytes() == before
    assert results(2, tmp_path / "3", train_on, "cd", run, CONFIG, 7) == ["preempted"] * 2
    allowed = small_config("train.steps=12", "runtime.allow_inexact=true")
    assert results(2, tmp_path / "4", train_on, "aa", run, allowed) == ["done"] * 2
    resumes = [e for e in RunDir(run).read_entries() if e["kind"] == "resume"]
    assert [e.get("changed") for e in resumes] == [None, {"topology": ["2 x 1", "1 x 2"]}]
