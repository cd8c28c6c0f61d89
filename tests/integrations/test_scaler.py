"""The orders in which loops unscale, say that they clip, clip and step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from tests.integrations.oracle import Norms, assert_recorded, grad_norms, weights

SCALE = 2.0**12
LAYERS = {"0": "0", "2": "2"}
Order = Callable[[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler, stabkit.Monitor], None]


def clip(model: nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def plain(model, optimizer, scaler, monitor):  # type: ignore[no-untyped-def]
    scaler.unscale_(optimizer)
    clip(model)
    scaler.step(optimizer)
    scaler.update()


def told_before_unscaling(model, optimizer, scaler, monitor):  # type: ignore[no-untyped-def]
    monitor.before_clipping()  # transformers, by `watch`
    plain(model, optimizer, scaler, monitor)


def told_after_unscaling(model, optimizer, scaler, monitor):  # type: ignore[no-untyped-def]
    scaler.unscale_(optimizer)
    monitor.before_clipping()  # Lightning
    clip(model)
    scaler.step(optimizer)
    scaler.update()


def without_clipping(model, optimizer, scaler, monitor):  # type: ignore[no-untyped-def]
    scaler.step(optimizer)
    scaler.update()


def never_stepped(model, optimizer, scaler, monitor):  # type: ignore[no-untyped-def]
    """As a loop does that looks at the norm and passes over the step."""
    scaler.unscale_(optimizer)
    monitor.before_clipping()
    scaler.update()


@pytest.mark.parametrize(
    "order",
    [plain, told_before_unscaling, told_after_unscaling, without_clipping, never_stepped],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_every_order_gives_one_row_a_step(tmp_path: Path, enabled: bool, order: Order) -> None:
    """`GradScaler(enabled=use_amp)`: the same loop with and without half precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=enabled)
    seen: dict[int, Norms] = {}
    with stabkit.Monitor(model, optimizer, tmp_path, scaler=scaler, full_every=1) as monitor:
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
            seen[step] = grad_norms(model, SCALE if enabled else 1.0)
            # every other step another way than the one before
            (order if step % 2 else plain)(model, optimizer, scaler, monitor)
    assert_recorded(tmp_path, seen, LAYERS)
    assert vars(scaler).keys().isdisjoint({"step", "unscale_", "update"})
    assert stabkit.open_run(tmp_path).log().empty


@pytest.mark.parametrize("skipped", [None, 1])
def test_what_is_told_of_two_optimizers_leaves_their_updates_right(
    tmp_path: Path, skipped: int | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    both = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    moved = []
    with stabkit.Monitor(model, both, tmp_path, full_every=1) as monitor:
        for step in range(4):
            model.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            monitor.before_clipping()
            before = weights(model)
            for optimizer in both:
                if step != skipped:
                    optimizer.step()
            pairs = zip(weights(model), before, strict=True)
            change = [(p - q).double().square().sum() for p, q in pairs]
            moved.append([float(sum(change[i : i + 2])) ** 0.5 for i in (0, 2)])
    signals = stabkit.open_run(tmp_path).signals()
    table = signals.pivot(index="step", columns="layer", values="update_norm")
    assert table.index.tolist() == [0, 1, 2, 3]
    # differences of float32 weights near 0.5, of about 1e-2: 6e-8 / 1e-2
    np.testing.assert_allclose(table[["0", "2"]], moved, rtol=1e-4)
