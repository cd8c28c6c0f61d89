"""A small network, two views, two processes: shared by the tests of the frameworks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from stabkit.config import MethodConfig, ModelConfig
from stabkit.train.methods.build import Method, build_method
from stabkit.train.models.vit_config import build_vit

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
    """Return two views in float64, and labels."""
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(2, count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return pair[0], pair[1], torch.arange(count) % NUM_CLASSES


def without_gradient(method: Method) -> set[str]:
    return {name for name, p in method.online.named_parameters() if p.grad is None}


def kinds(head: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for module in head.children()]


PairLoss = Callable[[Tensor, Tensor], Tensor]


def loss_and_gradients(loss_of: PairLoss, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient in both arguments [2, B, C]; zero if there is none."""
    leaves = [x.clone().requires_grad_() for x in (first, second)]
    loss = loss_of(*leaves)
    loss.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return loss.detach(), torch.stack(grads)


def on_two_processes(
    loss_of: PairLoss, first: Tensor, second: Tensor, folder: Path
) -> tuple[Tensor, Tensor]:
    """Return the same for two processes with half of the rows each, averaged as DDP does."""

    def own(rows: slice) -> tuple[Tensor, Tensor]:
        return loss_and_gradients(loss_of, first[rows], second[rows])

    losses, grads = zip(*halves(own, len(first), folder), strict=True)
    return torch.stack(losses).mean(), torch.cat(grads, dim=1) / 2


def halves(own: Callable[[slice], Any], count: int, folder: Path) -> list[Any]:
    """Return what each of two processes makes of its half of `count` rows."""
    mp.start_processes(_half, (own, count, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _half(rank: int, own: Callable[[slice], Any], count: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    half = count // 2
    torch.save(own(slice(half * rank, half * rank + half)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
