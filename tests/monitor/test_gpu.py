"""What only a CUDA device can show: `make test-gpu`."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.monitor.probe import Probe
from stabkit.monitor.signals.signal import LEVELS
from tests.monitor.toy import kinds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 8))
    return nn.Sequential(*layers).cuda()


@pytest.mark.parametrize("fused", [True, False])
def test_no_step_waits_for_the_device_with_several_optimizers(tmp_path: Path, fused: bool) -> None:
    """Over several intervals: at their ends copies begin, and are read an interval later."""
    model = small_model()
    optimizers = [
        torch.optim.AdamW(model[0].parameters(), lr=0.01, fused=fused, capturable=fused),
        torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9),
    ]
    images = torch.randn(32, 64, device="cuda")
    with stabkit.Monitor(
        model, optimizers, tmp_path, flush_every=10, images_per_step=32
    ) as monitor:
        for step in range(45):
            loss = model(images).square().mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            # the first step allocates, and the first interval pins memory
            torch.cuda.set_sync_debug_mode("error" if step > 21 else "default")
            try:
                monitor.before_clipping()
                for optimizer in optimizers:
                    optimizer.step()
                monitor.log(loss=loss, mixed=loss if step % 2 else float(step), n=step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert kinds(tmp_path) == []  # a wait would have been an error, guarded and left there
    run = stabkit.open_run(tmp_path)
    for name in ("loss", "mixed", "n"):
        assert run.scalar(name).index.tolist() == list(range(45))
    assert run.signals()["grad_norm"].notna().sum() == 45 * len(monitor.layers)


def test_a_scaler_waits_no_more_with_a_monitor(tmp_path: Path) -> None:
    """A GradScaler itself waits once a step, which the debug mode's warnings count."""

    def waits(folder: Path | None) -> list[int]:
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        images = torch.randn(32, 64, device="cuda", generator=torch.Generator("cuda"))
        monitor = None
        if folder is not None:
            monitor = stabkit.Monitor(model, optimizer, folder, scaler=scaler, flush_every=100)
        found = []
        for step in range(20):
            with torch.autocast("cuda", torch.float16):
                loss = model(images * (math.inf if step == 12 else 1.0)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scaler.unscale_(optimizer)
                if monitor:
                    monitor.before_clipping()
                scaler.step(optimizer)
                scaler.update()
                if monitor:
                    monitor.log(loss=loss)
            torch.cuda.set_sync_debug_mode("default")
            found.append(sum("synchroniz" in str(warning.message) for warning in caught))
        if monitor:
            monitor.close()
        return found

    bare = waits(None)
    assert any(bare)
    assert waits(tmp_path) == bare
    assert kinds(tmp_path) == ["nonfinite"]


@pytest.mark.parametrize("signals", [*LEVELS, list(LEVELS)], ids=str)
def test_a_training_is_the_same_bit_for_bit(tmp_path: Path, signals: Any) -> None:
    def training(folder: Path | None) -> list[bytes]:
        model = small_model()
        target = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = torch.Generator("cuda").manual_seed(1)
        monitor = None
        if folder is not None:
            g = torch.Generator("cuda").manual_seed(2)
            views = [torch.randn(8, 64, device="cuda", generator=g) for _ in range(2)]
            probe = Probe(*views, loss=lambda m: m(views[0]).square().mean(), target=target)
            monitor = stabkit.Monitor(
                model, optimizer, folder, signals=signals, probe=probe, every=3, flush_every=2,
                images_per_step=32,
            )  # fmt: skip
        found = []
        for _ in range(9):
            images = torch.randn(32, 64, device="cuda", generator=data)
            optimizer.zero_grad()
            for part in images.chunk(2):
                loss = model(part).square().mean() / 2
                loss.backward()
                if monitor:
                    monitor.micro_batch()
            optimizer.step()
            if monitor:
                monitor.log(loss=loss)
            found.append(loss.detach())
        if monitor:
            monitor.close()
        tensors = [*found, *model.state_dict().values(), torch.rand(1, device="cuda")]
        return [tensor.cpu().numpy().tobytes() for tensor in tensors]

    if signals == "attention":
        pytest.skip("the model has no attention")
    assert training(tmp_path) == training(None)
    assert "monitor_failed" not in kinds(tmp_path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_values_of_a_device_that_is_not_the_current_one(tmp_path: Path) -> None:
    """A copy waited for on another device's stream would be read before it is made."""
    model = nn.Linear(2048, 2048, bias=False, device="cuda:1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    images = torch.randn(4096, 2048, device="cuda:1")
    norms = []
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=1) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            for _ in range(20):  # a queue for the copy to wait behind
                model(images * (step + 1)).sum().backward()
            optimizer.step()
            monitor.flush()
            assert model.weight.grad is not None
            norms.append(float(model.weight.grad.norm()))
    recorded = stabkit.open_run(tmp_path).signals()["grad_norm"]
    np.testing.assert_allclose(recorded, norms, rtol=1e-4)
