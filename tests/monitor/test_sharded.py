"""Two processes: DDP, FSDP2 and its hybrid record what one process does with the whole batch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import stabkit
from stabkit.monitor.signals.noise import NoiseSignals
from stabkit.monitor.signals.signal import choose
from stabkit.train.parallel.reduce import process_group
from tests.monitor.expected import Expected
from tests.train.processes import results

pytestmark = pytest.mark.processes

STEPS = 5
WAYS = ("ddp", "fsdp", "hybrid")


class Net(nn.Module):
    """In float64, so that sums in another order agree to more digits than are stored.

    Of two processes one has two rows of a 3-row matrix and the other one; of a single row one has
    all. `scale`, of no dimension, cannot be sharded; `frozen` has no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.8))
        self.blocks = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 30), nn.Linear(30, 1)])
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        first, middle, last = self.blocks
        x = middle(self.frozen(first(x).tanh()) * self.scale).tanh()
        out: Tensor = last(x)
        return out


def layer_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]


ORDER = ["blocks.0", "scale", "blocks.1", "blocks.2", "frozen"]


def small() -> Net:
    torch.manual_seed(0)
    return Net().double()


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    # a group each: torch does not update sharded and other tensors at once
    single = [p for p in model.parameters() if p.ndim == 0]
    rest = [p for p in model.parameters() if p.ndim > 0]
    groups = [{"params": rest}, {"params": single}]
    return torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=generator, dtype=torch.float64)


def sharded(model: Net, way: str) -> nn.Module:
    if way == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if way == "hybrid":
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (2,))
    for module in (*model.blocks, model.frozen):
        fully_shard(module, mesh=mesh)
    return model


def local_norm(module: nn.Module) -> float:
    """As if there were no other process."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return math.hypot(*(float(getattr(g, "to_local", lambda g=g: g)().norm()) for g in grads))


def train(way: str, folder: Path | None) -> dict[str, Any]:
    """Half of the batch for each of two processes."""
    bare = small()
    model = sharded(bare, way)
    optimizer = optimizer_of(model)
    monitor = None
    if folder is not None:
        own = folder / str(dist.get_rank())
        monitor = stabkit.Monitor(model, optimizer, own, flush_every=2, full_every=1)
    local, losses = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step).chunk(2)[dist.get_rank()]).square().mean()
        loss.backward()
        if way != "ddp" and bare.scale.grad is not None:
            dist.all_reduce(bare.scale.grad)  # which FSDP does not have
            bare.scale.grad /= 2
        local.append(local_norm(bare.blocks[1]))
        if monitor is not None:
            monitor.before_clipping()
        nn.utils.clip_grad_norm_(bare.blocks[1].parameters(), 0.02)
        optimizer.step()
        if monitor is not None:
            monitor.log(loss=loss)
        losses.append(loss.item())
    if monitor is not None:
        monitor.flush()
        monitor.log(last=7.0)  # with the first process alone, which must not wait for the other
        monitor.close()
    whole = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]
    return {"local": local, "losses": losses, "weights": whole}


def all_ways(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    found = {}
    with process_group(cuda=False):
        for way in WAYS:
            with_it, without = train(way, folder / way), train(way, None)
            same = map(torch.equal, with_it["weights"], without["weights"])
            found[way] = with_it | {"same": all(same) and with_it["losses"] == without["losses"]}
    return found


def alone() -> Expected:
    """One process and the whole batch."""
    model = small()
    optimizer = optimizer_of(model)
    expected = Expected(model, [optimizer], layer_of, ORDER)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        expected.row()
        expected.gradients(optimizer)
        nn.utils.clip_grad_norm_(model.blocks[1].parameters(), 0.02)
        expected.before(optimizer)
        optimizer.step()
        expected.after(optimizer)
    return expected


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, results(2, folder / "results", all_ways, folder)


@pytest.mark.parametrize("way", WAYS)
def test_every_signal_is_that_of_one_process(
    way: str, trained: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, ranks = trained
    assert [rank[way]["same"] for rank in ranks] == [True, True]
    expected = alone()
    expected.check(folder / way / "0")
    run = stabkit.open_run(folder / way / "0")
    assert run.scalar("loss").tolist() == ranks[0][way]["losses"]
    assert run.scalar("last").to_dict() == {STEPS - 1: 7.0}
    assert {event["kind"] for event in run.log_entries()} <= {"param_groups"}
    assert not (folder / way / "1").exists()  # the other process writes nothing
    # what a process would see that did not ask the others: half of it
    naive = [rank["fsdp"]["local"] for rank in ranks]
    norms = [row["blocks.1"]["grad_norm"] or 0.0 for row in expected.rows]
    for step, value in enumerate(norms):
        assert value > 0.02  # it is clipped as well
        assert math.hypot(naive[0][step], naive[1][step]) == pytest.approx(value, rel=1e-6)
        assert max(naive[0][step], naive[1][step]) < 0.9 * value


def steps_of(way: str, folder: Path, act: Callable[[stabkit.Monitor, int], None]) -> str:
    """Twelve steps of both processes, `act` after each; what became of this one."""
    torch.set_num_threads(1)
    with process_group(cuda=False):
        model = sharded(small(), way)
        optimizer = optimizer_of(model)
        try:
            with stabkit.Monitor(model, optimizer, folder, flush_every=5, full_every=1) as monitor:
                monitor.on("nonfinite", "log")
                for step in range(12):
                    optimizer.zero_grad()
                    model(batch(step)).square().mean().backward()
                    optimizer.step()
                    act(monitor, step)
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
    return "done"


def first_flushes(folder: Path) -> str:
    def act(monitor: stabkit.Monitor, step: int) -> None:
        if step == 7 and dist.get_rank() == 0:
            monitor.flush()

    return steps_of("ddp", folder, act)


def test_a_process_may_flush_alone(tmp_path: Path) -> None:
    """As beside a checkpoint that only the first saves: reactions are still agreed on together."""
    assert results(2, tmp_path / "said", first_flushes, tmp_path / "run") == ["done", "done"]
    run = stabkit.open_run(tmp_path / "run")
    assert run.scalar("grad_norm_total").index.tolist() == list(range(12))


def second_raises(folder: Path) -> str:
    def act(monitor: stabkit.Monitor, step: int) -> None:
        if step == 7 and dist.get_rank() == 1:
            raise ValueError("bad image")

    return steps_of("fsdp", folder, act)


def test_the_error_of_one_process_is_not_hidden_by_its_monitor(tmp_path: Path) -> None:
    """What has been added up over processes is on disk; for the rest there is no other to ask."""
    first, second = results(2, tmp_path / "said", second_raises, tmp_path / "run")
    assert second == "ValueError: bad image"
    assert first.startswith("RuntimeError")
    run = stabkit.open_run(tmp_path / "run")
    assert run.scalar("grad_norm_total").index.tolist() == list(range(5))
    status = run.status()
    assert status is not None
    assert status.state == "failed"


def noise_of_wrapped(folder: Path) -> list[Any]:
    with process_group(cuda=False):
        inner = small()
        ddp = DistributedDataParallel(inner)
        found: list[Any] = []
        for model in (ddp, torch.compile(ddp, backend="eager"), sharded(small(), "fsdp")):
            try:
                noise = NoiseSignals(choose("noise"), 16, model, lambda *_: None).noise
                found.append(noise.reduced_by if noise else None)
            except ValueError as error:
                found.append(str(error))
    return found


def test_noise_knows_who_reduces_gradients(tmp_path: Path) -> None:
    for found in results(2, tmp_path, noise_of_wrapped, tmp_path):
        assert found[:2] == ["backward", "backward"]
        assert "needs whole gradients; this model is sharded" in found[2]
