"""Every tensor of a model in one flat buffer, so that a signal is one pass over one tensor.

The buffer is [blocks, width]: each tensor fills whole rows, the last padded with zeros. A pass over
it costs the same however many tensors there are, and its rows are added up by layer in a fixed
order, so that a value is the same to the last bit when a step is made again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL, LARGE = 256, 1024  # width: of a small model more would be padding, of a large one index


class Blocks:
    """`values` [blocks, width] holds one tensor for each of `parameters`; `layer[i]` is its layer.

    `scratch`, as large, is for whoever reads `values`. Values are float32, or float64 if a
    parameter is. Of a sharded parameter (FSDP) only this rank's shard is there.
    """

    def __init__(self, parameters: Sequence[Tensor], layer: Sequence[int], num_layers: int) -> None:
        own = [local(p) for p in parameters]
        device = own[0].device
        double = any(p.dtype == torch.float64 for p in own)
        width = SMALL if sum(p.numel() for p in own) < 2**22 else LARGE
        rows = [-(-p.numel() // width) for p in own]
        dtype = torch.float64 if double else torch.float32
        # of sums over a layer: float32 has no integers beyond 2^24, nor has MPS float64
        self.exact = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(sum(rows), width, dtype=dtype, device=device)
        self.scratch = torch.zeros_like(self.values)
        self._views = _views(self.values, own, rows)
        self._scratch_views = _views(self.scratch, own, rows)
        self.of_row = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(rows)).to(device)
        """[blocks] the number of the tensor that a row is of."""
        self._index = _index([layer[i] for i in self.of_row.tolist()], num_layers).to(device)
        self._share: Tensor | None = None
        self.sharded = any(map(is_sharded, parameters))
        if self.sharded:
            share = torch.tensor([1 / _replicas(p) for p in parameters], dtype=torch.float64)
            self._share = share.to(device)[self.of_row]

    @torch.no_grad()
    def fill(self, tensors: Sequence[Tensor | None], scratch: bool = False) -> None:
        """One tensor for each parameter, of its shape; None leaves zeros."""
        views = self._scratch_views if scratch else self._views
        into, what = self._present(views, tensors)
        if len(into) < len(views):
            torch._foreach_zero_([v for v, t in zip(views, tensors, strict=True) if t is None])
        if into:
            torch._foreach_copy_(into, what)

    @torch.no_grad()
    def subtract(self, tensors: Sequence[Tensor | None]) -> None:
        """From what was filled in; None leaves it."""
        into, what = self._present(self._views, tensors)
        if into:
            torch._foreach_sub_(into, what)

    def _present(
        self, views: Sequence[Tensor], tensors: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(v, t) for v, t in zip(views, tensors, strict=True) if t is not None]
        into, what = [view for view, _ in pairs], [tensor for _, tensor in pairs]
        if self.sharded or not all(t.layout is torch.strided for t in what):
            what = [local(t) for t in what]
        return into, what

    def of_layers(self, rows: Tensor, combine: str) -> Tensor:
        """[k, layers] sums or maxima, not below 0, of [k, blocks]; of this rank alone."""
        if combine == "sum" and self._share is not None:
            rows = rows * self._share
        by_layer = F.pad(rows, (0, 1))[:, self._index]  # [k, layers, most blocks of a layer]
        return by_layer.sum(-1, dtype=self.exact) if combine == "sum" else by_layer.amax(-1)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, as a plain dense tensor; the same when there is only one."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def _replicas(tensor: Tensor) -> int:
    """How many ranks hold the same part of it: together they must count once."""
    world = torch.distributed.get_world_size()
    if not is_sharded(tensor):
        return world
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    parts = 1
    for dim, placement in enumerate(placements):
        parts *= mesh.size(dim) if placement.is_shard() else 1
    return max(1, world // parts)


def _views(flat: Tensor, like: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    width = flat.shape[1]
    parts = torch.split(flat.view(-1), [n * width for n in rows])
    return [part[: t.numel()].view(t.shape) for part, t in zip(parts, like, strict=True)]


def _index(layer_of_row: Sequence[int], num_layers: int) -> Tensor:
    """[layers, most rows of a layer]: the rows of each; `len(layer_of_row)` stands for none."""
    members: list[list[int]] = [[] for _ in range(num_layers)]
    for row, layer in enumerate(layer_of_row):
        members[layer].append(row)
    index = torch.full((num_layers, max(1, *map(len, members))), len(layer_of_row))
    for layer, rows_of in enumerate(members):
        index[layer, : len(rows_of)] = torch.tensor(rows_of)
    return index
