"""A kNN and a teacher where two processes train one model, wrapped (DDP) or sharded (FSDP2)."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import stabkit
from tests.monitor.knn.test_knn import BANK, QUERIES
from tests.train.processes import exit_codes, start

pytestmark = pytest.mark.processes


def training(kind: str, folder: Path | None) -> list[Tensor]:
    """Return the weights and buffers after 7 steps, of this process."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    teacher: Any = copy.deepcopy(model)
    if kind == "wrapped":
        model = DistributedDataParallel(model)
    elif kind == "sharded":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        model, teacher = fully_shard(model, mesh=mesh), fully_shard(teacher, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    monitor = None
    if folder is not None:
        monitor = stabkit.Monitor(
            model, optimizer, folder, knn=stabkit.KNN(BANK, QUERIES, every=3), teacher=teacher,
            probe=stabkit.Probe(BANK[0][:8]), probe_every=2, flush_every=2,
        )  # fmt: skip
    for step in range(7):
        # the same batch in each process: the mean of their gradients is that of one
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 6, generator=g), torch.randint(4, (16,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
    if monitor is not None:
        monitor.close()
    parts = [*model.parameters(), *model.buffers(), *teacher.parameters()]
    return [(p.to_local() if hasattr(p, "to_local") else p).detach().clone() for p in parts]


def _two(kind: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    without, with_it = training(kind, None), training(kind, folder)
    assert all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["wrapped", "sharded"])
def test_both_are_measured_once_and_leave_no_trace(tmp_path: Path, kind: str) -> None:
    assert exit_codes(start(2, _two, kind, tmp_path / kind)) == [0, 0]
    training("alone", tmp_path / "alone")
    found, alone = (stabkit.open_run(tmp_path / name) for name in (kind, "alone"))
    assert found.log_entries() == []
    assert found.evals()["step"].tolist() == [0, 3, 6, 7]
    assert found.evals()["value"].tolist() == alone.evals()["value"].tolist()
    for name in ("teacher_distance", "teacher_feature_std", "probe_rank", "target_cosine"):
        assert found.scalar(name).index.tolist() == [0, 2, 4, 6]
        assert found.scalar(name).tolist() == pytest.approx(alone.scalar(name).tolist(), rel=1e-4)
