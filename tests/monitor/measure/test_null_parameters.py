"""Parameters whose true gradient is zero are found and left out; small gradients are not."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

import stabkit

FLUSH, STEPS = 10, 40


class Moco(nn.Module):
    """A ViT whose final norm is followed by a BatchNorm, and a layer whose output counts little."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=0
        )
        self.projector = nn.Sequential(
            nn.Linear(24, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)
        )
        self.small = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        features = self.vit(x)
        out: Tensor = self.projector(features) + 1e-7 * self.small(features.detach())
        return F.normalize(out, dim=1)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(step))
    one, two = model(x), model(x.flip(-1))
    return F.cross_entropy(one @ two.T / 0.2, torch.arange(16))


def train(folder: Path, flush_every: int, closes_at: int = -1) -> Path:
    """Train under a Monitor; at step `closes_at` another one goes on."""
    model, optimizer = built()
    monitor = stabkit.Monitor(model, optimizer, folder, flush_every=flush_every, full_every=1)
    for step in range(STEPS):
        if step == closes_at:
            monitor.close()
            options: dict[str, Any] = {"first_step": step, "flush_every": flush_every}
            monitor = stabkit.Monitor(model, optimizer, folder, **options, full_every=1)
        train_step(model, optimizer, step)
    monitor.close()
    return folder


def built() -> tuple[Moco, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Moco()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-16)


def train_step(model: Moco, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()


def adam_rms(p: nn.Parameter, optimizer: torch.optim.Optimizer, step: int) -> float:
    v = optimizer.state[p]["exp_avg_sq"].double() / (1 - 0.999**step)
    assert p.grad is not None
    return float((p.grad.double().square() / v).mean().sqrt())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Return a folder, and adam_rms of the final norm's weight alone."""
    folder = train(tmp_path_factory.mktemp("null"), FLUSH)
    model, optimizer = built()
    rms = []
    for step in range(STEPS):
        train_step(model, optimizer, step)
        rms.append(adam_rms(model.vit.norm.weight, optimizer, step + 1))
    return folder, rms


@pytest.mark.lengthy
def test_null_parameters_of_a_moco_vit_are_named_once(trained: tuple[Path, list[float]]) -> None:
    events = [
        e
        for e in stabkit.rundir.RunDir(trained[0]).read_entries()
        if e["kind"] == "null_parameters"
    ]
    assert len(events) == 1
    named = str(events[0]["reason"]).rpartition(": ")[2].split(", ")
    keys = [f"vit.blocks.{i}.attn.qkv.bias[24:48]" for i in range(2)]
    assert sorted(named) == sorted([*keys, "vit.norm.bias"])  # and not `small`


@pytest.mark.lengthy
def test_a_resumed_run_leaves_out_the_same(
    tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    """Other intervals, and a process that knows nothing of the steps before."""
    whole = stabkit.open_run(trained[0]).signals()
    found = stabkit.open_run(train(tmp_path, flush_every=3, closes_at=13)).signals()
    pd.testing.assert_frame_equal(found, whole)


def test_a_layer_is_what_it_is_without_its_null_parameters(
    trained: tuple[Path, list[float]],
) -> None:
    folder, rms = trained
    norm = stabkit.open_run(folder).signals().query("layer == 'norm'")
    assert norm["adam_rms"].tolist() == pytest.approx(rms, rel=2e-5)


def test_a_small_gradient_is_a_gradient(trained: tuple[Path, list[float]]) -> None:
    rows = stabkit.open_run(trained[0]).signals().query("layer == 'small'")
    largest = stabkit.open_run(trained[0]).signals().query("layer == 'projector'")["grad_norm"]
    assert (rows["grad_norm"].to_numpy() < 1e-5 * largest.to_numpy()).all()
    assert (rows["adam_rms"] > 0).all()


class Shifted(nn.Module):
    """The mean is subtracted behind the bias, until `keeps_mean`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(20, 20)
        self.keeps_mean = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out if self.keeps_mean else out - out.mean(0)


def test_a_bias_counts_again_when_it_has_a_gradient(tmp_path: Path) -> None:
    model = Shifted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = []
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=10, full_every=1):
        for step in range(30):
            model.keeps_mean = step >= 20
            x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(x) - x.roll(1, 1)).square().sum().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            pairs = zip(before, model.parameters(), strict=True)
            weight, bias = ((old - p).norm().item() for old, p in pairs)
            moved.append(weight if step < 20 else (weight**2 + bias**2) ** 0.5)
    updates = stabkit.open_run(tmp_path).signals()["update_norm"].tolist()
    assert updates == pytest.approx(moved, rel=1e-5)
