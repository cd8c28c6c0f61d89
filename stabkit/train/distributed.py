"""What training needs of torch.distributed; a single process needs no process group."""

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


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
