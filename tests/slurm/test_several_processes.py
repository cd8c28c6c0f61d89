"""One run on two nodes of a real SLURM: its processes meet, stop together and go on together."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import LONG, Site, make_site
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.slurm
# both nodes are this machine, which knows them by no name of theirs
TWO_NODES = [
    *LONG,
    "train.steps=120",
    "slurm.nodes=2",
    "slurm.setup=[export MASTER_ADDR=127.0.0.1]",
]


@pytest.mark.slow  # three jobs of two processes one after the other, for more than a minute
def test_requeued_on_two_nodes_it_is_the_unbroken_run_on_two_nodes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        sites.append(make_site(cluster, tmp_path / name, monkeypatch))
    unbroken, broken = sites
    unbroken.sweep(*TWO_NODES)
    unbroken.wait_for_state("done")
    broken.sweep(*TWO_NODES)
    broken.wait_for_step(20)
    job = str(broken.row().job)
    cluster.command("scontrol", "requeue", job)
    broken.wait_for_release(job)
    broken.wait_for_state("done")
    first, second = broken.attempts()
    assert (first["processes"], second["processes"]) == (2, 2)
    assert second["first_step"] >= 20
    assert_same_run(broken.run(), unbroken.run())


def test_a_task_that_dies_ends_the_others_and_the_run_goes_on(cluster: Cluster, site: Site) -> None:
    site.sweep(*TWO_NODES, "train.steps=100000")
    site.wait_for_step(60)
    job = str(site.row().job)
    (other,) = (
        int(pid)
        for pid in cluster.command("pgrep", "-f", "submitit.core._submit").split()
        if _is_rank(int(pid), 1)
    )
    cluster.command("kill", "-KILL", str(other))
    site.wait("ended", lambda: cluster.state(job) not in ("RUNNING", "COMPLETING"))
    assert site.row().state in ("lost", "failed")


def _is_rank(pid: int, rank: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"SLURM_PROCID={rank}".encode() in environment
