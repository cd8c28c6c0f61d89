"""Every tensor of a model in one flat buffer, so that a signal is one pass over one tensor.

The buffer is [blocks, width]. Each tensor fills whole rows, the last one padded with zeros. A pass
costs the same however many tensors there are. Rows are added up by layer in a fixed order, so that
a value is the same to the last bit when a step is made again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.monitor.ranks import world_size

# Widths. In a small model wide rows would be mostly padding; in a large one narrow rows would need
# a large index.
SMALL, LARGE = 256, 1024
# In float32 the square of a value above 1.8e19 is infinite, and that of one below 1e-19 loses
# digits. A row whose norm is infinite or below FAINT is therefore measured again, multiplied by a
# power of two, which loses no digit.
FAINT, LARGEST = 1e-14, torch.finfo(torch.float32).max
UP, DOWN = 2.0**100, 2.0**-80


class Blocks:
    """`values` [blocks, width] holds one tensor for each of `parameters`; `layer[i]` is its layer.

    `scratch` has the same size and is free for readers of `values`. Values are float32, or float64
    if a parameter is. A sharded parameter (FSDP) has only this rank's shard here.
    """

    def __init__(self, parameters: Sequence[Tensor], layer: Sequence[int], num_layers: int) -> None:
        own = [local(p) for p in parameters]
        device = own[0].device
        double = any(p.dtype == torch.float64 for p in own)
        width = SMALL if sum(p.numel() for p in own) < 2**22 else LARGE
        rows = [-(-p.numel() // width) for p in own]
        dtype = torch.float64 if double else torch.float32
        # the type of sums over a layer: float32 has no integers beyond 2^24
        self.exact = exact_type(device)
        self.values = torch.zeros(sum(rows), width, dtype=dtype, device=device)
        self.scratch = torch.zeros_like(self.values)
        self._tensors = [  # with their padding, which is zeros
            part for part in torch.split(self.values, rows) if len(part)
        ]
        self._views = _views(self.values, own, rows)
        self._scratch_views = _views(self.scratch, own, rows)
        self._patterns: dict[tuple[bool, ...], tuple[list[Tensor], list[Tensor]]] = {}
        self.of_row = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(rows)).to(device)
        """[blocks] the number of the tensor that a row is of."""
        firsts = F.pad(self.of_row.diff() != 0, (1, 0), value=True)
        self._is_first = firsts[: len(self.of_row)]  # row of its tensor
        self._tensor_of_row = self._is_first.cumsum(0) - 1  # of `_tensors`
        layers = [layer[i] for i in self.of_row.tolist()]
        self._num_layers, self._layer_of_row = num_layers, torch.tensor(layers, device=device)
        self._index = _index(layers, num_layers).to(device)
        self._share: Tensor | None = None
        self.sharded = any(map(is_sharded, parameters))
        if self.sharded:
            share = torch.tensor([1 / _replicas(p) for p in parameters], dtype=torch.float64)
            self._share = share.to(device)[self.of_row]

    @torch.no_grad()
    def fill(self, tensors: Sequence[Tensor | None], scratch: bool = False) -> None:
        """Copy in one tensor for each parameter, of its shape; None leaves zeros."""
        there, absent = self._places(tensors, scratch)
        if absent:
            torch._foreach_zero_(absent)
        if there:
            torch._foreach_copy_(there, self._present(tensors))

    @torch.no_grad()
    def subtract(self, tensors: Sequence[Tensor | None]) -> None:
        """Subtract tensors from what was filled in; None leaves it as it is."""
        there, _ = self._places(tensors, scratch=False)
        if there:
            torch._foreach_sub_(there, self._present(tensors))

    def squares(self) -> Tensor:
        """Return the sum of squares of each row in float64, [blocks].

        It is finite for finite values, and 0 only for zeros. On CUDA the first row of a tensor has
        the sum of the whole tensor. MPS has no float64 and gets float32.
        """
        by_tensor = self.values.is_cuda and self._tensors  # none where all shards are elsewhere
        return self._squares_by_tensor() if by_tensor else self._squares_by_row()

    def _squares_by_tensor(self) -> Tensor:
        """Sum in one pass that widens, and ask nothing that the host would have to wait for."""
        norms = torch.stack(torch._foreach_norm(self._tensors, 2, dtype=self.exact))
        return torch.where(self._is_first, norms.square_()[self._tensor_of_row], 0.0)

    def _squares_by_row(self) -> Tensor:
        """Sum in float32, and again in a safe range where that is not exact.

        On a CPU, widening everything takes 5 to 30 times as long as the norm.
        """
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        found = norms.to(self.exact)
        if self.values.dtype == torch.float32 and self.exact == torch.float64:
            again = norms.clamp(FAINT, LARGEST).ne(norms).nonzero().squeeze(1)
            if len(again):
                scale = torch.where(norms[again] < FAINT, UP, DOWN)
                rows = self.values[again].mul_(scale[:, None])
                found[again] = torch.linalg.vector_norm(rows, dim=1).double().div_(scale)
        return found.square_()

    def _present(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        what = [t for t in tensors if t is not None]
        if self.sharded or not all(t.layout is torch.strided for t in what):
            what = [local(t) for t in what]
        return what

    def _places(
        self, tensors: Sequence[Tensor | None], scratch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the views of tensors that are there, and of those that are not.

        Cached, because the same few patterns of presence come again and again.
        """
        pattern = scratch, *(t is not None for t in tensors)
        if pattern not in self._patterns:
            if len(self._patterns) > 64:
                self._patterns.clear()
            views = list(zip(self._scratch_views if scratch else self._views, tensors, strict=True))
            there = [view for view, t in views if t is not None]
            self._patterns[pattern] = there, [view for view, t in views if t is None]
        return self._patterns[pattern]

    def of_layers(self, rows: Tensor, combine: str) -> Tensor:
        """Return sums or maxima over each layer, [k, layers] of [k, blocks], of this rank alone.

        A maximum is not below 0.
        """
        if combine == "sum" and self._share is not None:
            rows = rows * self._share
        if rows.is_cuda:  # where adding at an index has no fixed order
            by_layer = F.pad(rows, (0, 1))[:, self._index]  # [k, layers, most blocks of a layer]
            return by_layer.sum(-1, dtype=self.exact) if combine == "sum" else by_layer.amax(-1)
        totals = torch.zeros(len(rows), self._num_layers, dtype=self.exact, device=rows.device)
        if combine == "sum":
            return totals.index_add_(1, self._layer_of_row, rows.to(self.exact))
        whole = self._layer_of_row.expand(len(rows), -1)
        return totals.scatter_reduce_(1, whole, rows.to(self.exact), "amax")


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type in which squares are summed."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(tensor: Tensor) -> Tensor:
    """Return the tensor widened, as it must be before anything is squared."""
    return tensor.to(exact_type(tensor.device))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part as a plain dense tensor; the tensor itself if nothing is sharded."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout is torch.sparse_coo:  # rows given twice are summed in the optimizer's order
        tensor = tensor.coalesce()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def _replicas(tensor: Tensor) -> int:
    """Return how many ranks hold the same part of it: together they must count once."""
    world = world_size()
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
    """Return the rows of each layer, [layers, most rows of a layer].

    `len(layer_of_row)` stands for no row.
    """
    members: list[list[int]] = [[] for _ in range(num_layers)]
    for row, layer in enumerate(layer_of_row):
        members[layer].append(row)
    index = torch.full((num_layers, max(1, *map(len, members))), len(layer_of_row))
    for layer, rows_of in enumerate(members):
        index[layer, : len(rows_of)] = torch.tensor(rows_of)
    return index
