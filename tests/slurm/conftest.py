"""The clusters, and what the tests do on them: launch a sweep, wait for a state, compare runs."""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.sweep.status import Row, status_rows
from stabkit.train.loop import train
from tests.conftest import SMALL, small_config
from tests.slurm.cluster import Cluster, missing, running_cluster
from tests.slurm.preloaded_python import preloaded_python

WAIT_S = 600  # long past what a busy machine takes: only a hang lasts so long
LONG = [*SMALL, "train.steps=200", "data.num_train=640", "runtime.checkpoint_every=50"]
SWEEP = """
name: demo
base: tiny
slurm: {timeout_min: 60, mem_gb: 2}
"""


@dataclass(frozen=True)
class Site:
    """A user's folder on a cluster."""

    cluster: Cluster
    folder: Path

    def stabkit(self, *words: str, rc: int = 0) -> str:
        """Return what the command prints; its exit code must be `rc`."""
        printed = io.StringIO()
        with contextlib.chdir(self.folder), redirect_stdout(printed), redirect_stderr(printed):
            code = main(list(words))
        assert code == rc, printed.getvalue()
        return printed.getvalue()

    def sweep(self, *words: str, rc: int = 0) -> str:
        return self.stabkit("sweep", "demo.yaml", "--cluster", "slurm", *words, rc=rc)

    def rows(self) -> list[Row]:
        return status_rows(self.folder / "runs")

    def row(self) -> Row:
        (row,) = self.rows()
        return row

    def run(self) -> Path:
        (path,) = self.folder.glob("runs/demo/*/config.yaml")
        return path.parent

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {WAIT_S} s: {what}\n{self.story()}")
            time.sleep(0.2)

    def wait_for_state(self, *states: str) -> None:
        """Until every run is in one of these."""
        self.wait(f"every run {states}", lambda: all(r.state in states for r in self.rows()))

    def wait_for_step(self, step: int) -> None:
        """Until the only run has made `step` steps."""

        def made() -> bool:
            file = self.run() / "status.json"
            return json.loads(file.read_text())["step"] >= step

        self.wait(f"step {step}", made)

    def wait_for_release(self, job_id: str) -> None:
        """Until a requeued job is back in the queue, which it then need not wait in."""
        self.wait("requeued", lambda: self.cluster.state(job_id) == "PENDING")
        self.cluster.release(job_id)

    def attempts(self) -> list[dict[str, Any]]:
        attempts: list[dict[str, Any]] = json.loads((self.run() / "meta.json").read_text())[
            "attempts"
        ]
        return attempts

    def story(self) -> str:
        logs = sorted(self.folder.glob("runs/demo/.submitit/*.out"))
        tails = [f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        queue = self.cluster.command("squeue", "-t", "all")
        return "\n".join([*map(str, self.rows()), queue, *tails])


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skips where no cluster can be started; fails where one is required."""
    if reason := missing():
        if os.environ.get("STABKIT_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(slurm: None) -> Iterator[Cluster]:
    with running_cluster(short_folder()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounted_cluster(slurm: None) -> Iterator[Cluster]:
    """One that `sacct` knows of, too."""
    with running_cluster(short_folder(), accounting=True) as cluster:
        yield cluster


def short_folder() -> Path:
    """pytest's own are too deep for sockets, and closed to the users of munge and MariaDB."""
    return Path(tempfile.mkdtemp(prefix="stabkit-slurm-", dir="/tmp"))


@pytest.fixture(scope="session")
def unbroken(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the run of `LONG` here in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(small_config(*LONG), RunDir(folder))
    return folder


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_site(cluster, tmp_path, monkeypatch)


@pytest.fixture
def accounted_site(
    accounted_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    return make_site(accounted_cluster, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def preloaded_script(cluster: Cluster) -> Iterator[str]:
    with preloaded_python(cluster.folder) as script:
        yield script


@pytest.fixture
def preloaded_jobs(preloaded_script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the jobs from a process that has torch, which saves each of them seconds."""
    monkeypatch.setattr(sys, "executable", preloaded_script)


def make_site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Make a user's folder. Commands run in this process, in the environment of the cluster."""
    for name in os.environ.keys() - cluster.env.keys():
        monkeypatch.delenv(name)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    folder = tmp_path / "a user's ü"  # what a folder may be called
    folder.mkdir()
    (folder / "demo.yaml").write_text(SWEEP)
    return Site(cluster, folder)
