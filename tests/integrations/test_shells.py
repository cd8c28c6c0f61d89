"""The optimizers of Lightning Fabric and accelerate, as their `setup` and `prepare` return them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit

pytestmark = pytest.mark.frameworks


def bare(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any]:
    return model, optimizer, lambda loss: loss.backward()


def fabric(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any]:
    made = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    return *made.setup(model, optimizer), made.backward


def accelerate(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any]:
    made = pytest.importorskip("accelerate").Accelerator(cpu=True)
    return *made.prepare(model, optimizer), made.backward


def train(prepare: Any, folder: Path | None) -> tuple[list[float], list[float]]:
    """Return the losses and the norms of the whole gradient before clipping."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
    model, optimizer, backward = prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    monitor = stabkit.Monitor(model, optimizer, folder, full_every=1) if folder else None
    losses, norms = [], []
    for _ in range(6):
        loss = model(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        backward(loss)
        if monitor is not None:
            monitor.before_clipping(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), 0.1)))
        optimizer.step()
        losses.append(loss.item())
        if monitor is not None:
            monitor.log(loss=loss)
    if monitor is not None:
        monitor.close()
    return losses, norms


@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.parametrize("prepare", [fabric, accelerate])
def test_a_loop_with_what_was_prepared_is_recorded(prepare: Any, tmp_path: Path) -> None:
    losses, norms = train(prepare, tmp_path)
    assert (losses, norms) == train(prepare, None) == train(bare, None)
    run = stabkit.open_run(tmp_path)
    assert run.log().empty
    assert run.scalar("loss").tolist() == losses
    np.testing.assert_allclose(run.scalar("grad_norm_total"), norms, rtol=1e-5)
    rows = run.signals()
    assert sorted(rows["layer"].astype(str).unique()) == ["0", "2"]
    assert rows[["update_norm", "adam_rms"]].notna().all(axis=None)
