"""timm's parts in the order of timm's own script, with the two lines added."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import Tensor, nn

import stabkit
from tests.integrations.oracle import Norms, assert_recorded, grad_norms, same, weights

LAYERS = {name: name for name in ("patch_embed", "cls_token", "pos_embed", "norm", "head")}
LAYERS |= {name: name for name in ("blocks.0", "blocks.1")}
SCALE = 2.0**10


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(8, 3, 16, 16, generator=g) * 5, torch.randint(4, (8,), generator=g)


class Seeing(NativeScaler):  # type: ignore[misc]
    """timm's scaler; looks at the gradients at the end of the backward pass."""

    def __init__(self, model: nn.Module, seen: dict[int, Norms]) -> None:
        super().__init__(device="cpu")
        self._scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        unscale = self._scaler.unscale_

        def first_seen(optimizer: torch.optim.Optimizer) -> None:
            seen[len(seen)] = grad_norms(model, scale=SCALE)
            unscale(optimizer)

        self._scaler.unscale_ = first_seen


def train(
    folder: Path | None, half: bool, clip: float | None, steps: int = 8
) -> tuple[list[float], nn.Module, dict[int, Norms]]:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
        num_classes=4,
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    ema = ModelEmaV3(model, decay=0.9)
    loss_fn = nn.CrossEntropyLoss()
    seen: dict[int, Norms] = {}
    loss_scaler = Seeing(model, seen) if half else None
    monitor = None
    if folder is not None:
        scaler = loss_scaler._scaler if loss_scaler else None
        monitor = stabkit.Monitor(model, optimizer, folder, scaler=scaler)
    losses = []
    model.train()
    for step, (images, target) in enumerate(batches(steps)):
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = loss_fn(model(images), target)
        optimizer.zero_grad()
        if loss_scaler is not None:
            loss_scaler(loss, optimizer, clip_grad=clip, parameters=list(model.parameters()))
        else:
            loss.backward()
            seen[step] = grad_norms(model)
            if monitor is not None:
                monitor.before_clipping()
            if clip is not None:
                dispatch_clip_grad(model.parameters(), clip)
            optimizer.step()
        if monitor is not None:
            monitor.log(loss=loss)
        ema.update(model)
        schedule.step_update(step + 1)
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    return losses, model, seen


@pytest.mark.lengthy
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("half", [False, True])
def test_every_step_before_clipping_and_training_as_without(
    tmp_path: Path, half: bool, clip: float | None
) -> None:
    losses, model, seen = train(tmp_path, half, clip)
    bare_losses, bare, _ = train(None, half, clip)
    assert losses == bare_losses
    assert same(weights(model), weights(bare))
    assert min(sum(n.values()) for n in seen.values()) > 0.1**2, "nothing was to be clipped"
    assert_recorded(tmp_path, seen, LAYERS)
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == losses
