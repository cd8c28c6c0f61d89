"""A study of branches on a real SLURM: the controls first, then the others, then the verdict."""

import subprocess
import sys

import pytest

from stabkit.branch import study
from stabkit.branch.study import Size
from stabkit.rundir import RunDir
from stabkit.sweep.status import status_rows
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.slurm.conftest import Site
from tests.slurm.test_several_processes import TWO_NODES

pytestmark = pytest.mark.slurm
SMALL = """
import sys
from stabkit.branch import study
from stabkit.cli import main
study.PLACEBOS, study.QUICK = 1, study.Size(1, 1, ("beta2",))
sys.exit(main())
"""
PARENT = small_config("knn.every=2", "train.steps=20", "runtime.threads=1")


@pytest.mark.usefixtures("preloaded_jobs")
def test_a_study_of_branches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "PLACEBOS", 1)
    monkeypatch.setattr(study, "QUICK", Size(1, 1, ("beta2",)))
    train(PARENT, RunDir(site.folder / "run"))
    folder = site.folder / "branches/run-at-14"
    words = ["branch", "run", "--at", "14", "--until", "18", "--cluster", "slurm"]
    words += ["slurm.timeout_min=60", "slurm.mem_gb=2"]

    def done() -> list[str]:
        return [row.run for row in status_rows(folder) if row.state == "done"]

    said = site.stabkit(*words)
    assert "submitted 1 run" in said
    assert "when these are done, the same command goes on" in said
    site.wait("the control is done", lambda: len(done()) == 1)
    said = site.stabkit(*words)
    assert "control is the run bit for bit: 12 steps," in said
    assert "submitted 3 runs as array" in said
    site.wait("all branches are done", lambda: len(done()) == 4)
    jobs = {RunDir(folder / name).read_meta()["attempts"][-1]["job"] for name in done()}
    assert len(jobs) == 4
    said = site.stabkit(*words)
    assert "submitted" not in said
    assert "This holds for this event of this run only" in said


@pytest.mark.slow  # a parent and four branches, two processes each
def test_a_run_of_two_nodes_is_branched_on_two_nodes(site: Site) -> None:
    """Two processes make the states on this machine, as torchrun starts them; the jobs follow."""
    site.sweep(*TWO_NODES, "train.steps=20", "knn.every=2")
    site.wait_for_state("done")
    folder, small = site.folder / "study", site.folder / "small.py"
    small.write_text(SMALL)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(small)]
    command += ["branch", str(site.run()), "--at", "14", "--until", "18", "-o", str(folder)]
    command += ["--cluster", "slurm", "slurm.timeout_min=60", "slurm.mem_gb=2", *TWO_NODES[-2:]]

    def go_on() -> str:
        env = site.cluster.env | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=site.folder, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def done() -> list[str]:
        return [row.run for row in status_rows(folder) if row.state == "done"]

    assert "when these are done, the same command goes on" in go_on()
    site.wait("the control is done", lambda: len(done()) == 1)
    said = go_on()
    assert "control is the run bit for bit: 12 steps," in said
    assert "submitted 3 runs as array" in said
    site.wait("all branches are done", lambda: len(done()) == 4)
    attempts = [RunDir(folder / name).read_meta()["attempts"][-1] for name in done()]
    assert {attempt["processes"] for attempt in attempts} == {2}
    assert "This holds for this event of this run only" in go_on()
