"""What training needs of torch.distributed; a single process needs no process group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if _active() else 0


def gather(tensor_BD: Tensor) -> Tensor:
    """[ranks·B, D]: every process's rows in rank order, without gradient."""
    if not _active():
        return tensor_BD.detach()
    parts = [torch.empty_like(tensor_BD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor_BD.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(tensor_BD: Tensor) -> Tensor:
    """[ranks·B, D] in rank order; a row's gradient is the sum of what every process asks of it.

    With gradients averaged over the processes after that, as DDP does, mean losses of equal parts
    give the gradient of their common mean.
    """
    if not _active():
        return tensor_BD
    gathered: Tensor = _Gather.apply(tensor_BD)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_BD: Tensor) -> Tensor:
        ctx.rows = len(tensor_BD)
        return gather(tensor_BD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = rank() * ctx.rows
        return total[first : first + ctx.rows]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
