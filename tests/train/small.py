"""What the tests of the frameworks share: a small network, two views, two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from stabkit.config import MethodConfig, ModelConfig
from stabkit.train.methods import Method, build_method
from stabkit.train.vit import build_vit

NUM_CLASSES = 3
FROZEN = {
    "backbone.pos_embed",
    "backbone.patch_embed.proj.weight",
    "backbone.patch_embed.proj.bias",
}


def small_method(name: str, freeze: bool = False, **settings: Any) -> Method:
    torch.manual_seed(0)
    shape = ModelConfig(patch_size=8, width=16, depth=1, heads=2, freeze_patch_embed=freeze)
    settings = {"name": name, "hidden": 16, "out": 8, "prototypes": 12} | settings
    config = MethodConfig.model_validate(settings)
    return build_method(config, build_vit(shape, 16, fused_attention=False), 16, NUM_CLASSES)


def views(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Two views in float64, and labels."""
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(2, count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return pair[0], pair[1], torch.arange(count) % NUM_CLASSES


def without_gradient(method: Method) -> set[str]:
    return {name for name, p in method.online.named_parameters() if p.grad is None}


def kinds(head: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for module in head.children()]


PairLoss = Callable[[Tensor, Tensor], Tensor]


def loss_and_gradients(loss_of: PairLoss, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient in both arguments [2, B, C]; zero where there is none."""
    leaves = [x.clone().requires_grad_() for x in (first, second)]
    loss = loss_of(*leaves)
    loss.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return loss.detach(), torch.stack(grads)


def on_two_processes(
    loss_of: PairLoss, first: Tensor, second: Tensor, folder: Path
) -> tuple[Tensor, Tensor]:
    """The same with each process given half of the rows, averaged as DDP does."""
    losses = torch.zeros(2, dtype=first.dtype).share_memory_()
    grads = torch.zeros(2, *first.shape, dtype=first.dtype).share_memory_()
    given = (str(folder / "store"), loss_of, first, second, losses, grads)
    mp.start_processes(_half, given, nprocs=2, start_method="fork")
    return losses.mean(), grads / 2


def _half(
    rank: int,
    path: str,
    loss_of: PairLoss,
    first: Tensor,
    second: Tensor,
    losses: Tensor,
    grads: Tensor,
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    half = len(first) // 2
    own = slice(half * rank, half * rank + half)
    losses[rank], grads[:, own] = loss_and_gradients(loss_of, first[own], second[own])
    torch.distributed.destroy_process_group()
