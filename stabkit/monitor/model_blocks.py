"""The tensors of a model as `Blocks`, and the sums over them.

On a CPU a model is looked at part by part. A part fits the cache of a core with its scratch, so
that only the first of all passes over it waits for the memory. Elsewhere the model is one part.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.monitor.blocks import Blocks, Piece, exact_type, is_sharded, local
from stabkit.monitor.ranks import world_size

# Widths. In a small model wide rows would be mostly padding; in a large one narrow rows would need
# a large index.
SMALL, LARGE = 256, 1024
PART = 2**18  # elements on a CPU: 2 MiB with the scratch
BUNDLE = 64  # rows that are added up first: else the index would be as wide as the largest tensor


class ModelBlocks:
    """`parts` take turns in one buffer, each for one kind of tensors: gradients, parameters, ...

    `kept` are the same parts, each with room of its own: what is filled in there stays until it is
    filled again. A sharded parameter (FSDP) has only this rank's shard here.
    """

    def __init__(self, parameters: Sequence[Tensor], keeps: bool = True) -> None:
        """Without `keeps`, `kept` are `parts`: nothing stays."""
        own = [local(p) for p in parameters]
        self.device = device = own[0].device
        self.exact = exact_type(device)
        self.sharded = any(map(is_sharded, parameters))
        width = SMALL if sum(p.numel() for p in own) < 2**22 else LARGE
        parts = _cut([p.shape for p in own], width, PART // width if device.type == "cpu" else None)
        rows = [sum(piece.rows(width) for piece in pieces) for pieces in parts]
        first = [sum(rows[:i]) for i in range(len(rows))]
        double = any(p.dtype == torch.float64 for p in own)
        dtype = torch.float64 if double else torch.float32
        work = torch.zeros(max(rows), width, dtype=dtype, device=device)
        scratch = torch.zeros_like(work)
        self.parts = self.kept = [
            Blocks(work[:n], scratch[:n], pieces, at, shared=len(parts) > 1)
            for pieces, n, at in zip(parts, rows, first, strict=True)
        ]
        if keeps and len(parts) > 1:
            whole = torch.zeros(sum(rows), width, dtype=dtype, device=device)
            self.kept = [
                Blocks(whole[at : at + n], scratch[:n], pieces, at, shared=False)
                for pieces, n, at in zip(parts, rows, first, strict=True)
            ]
        self._cut = [i for i in range(len(own)) if any(_holds_cut(pieces, i) for pieces in parts)]
        self.of_row = torch.cat([part.of_row for part in self.parts])
        """[blocks] the number of the tensor that a row is of."""
        self._bundles, self._index = (index.to(device) for index in _index(self.of_row, len(own)))
        self._there, self._firsts = np.unique(self.of_row.numpy(), return_index=True)
        self._share: Tensor | None = None
        if self.sharded:
            share = torch.tensor([1 / _replicas(p) for p in parameters], dtype=torch.float64)
            self._share = share.to(device)[self.of_row]

    def flat(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as parts take them: plain, dense, and flat where they are cut."""
        found = list(tensors)
        if self.sharded or not all(t is None or t.layout is torch.strided for t in tensors):
            found = [None if t is None else local(t) for t in tensors]
        for i in self._cut:
            tensor = found[i]
            found[i] = None if tensor is None else tensor.reshape(-1)
        return found

    def of_tensors(self, rows: Tensor, combine: str) -> Tensor:
        """Return sums or maxima over each tensor, [k, tensors] of [k, blocks], of this rank alone.

        A maximum is not below 0.
        """
        if combine == "sum" and self._share is not None:
            rows = rows * self._share
        rows = rows.to(self.exact)
        if rows.is_cuda:  # where adding at an index has no fixed order
            return _at(_at(rows, self._bundles, combine), self._index, combine)
        totals = torch.zeros(len(rows), len(self._index), dtype=self.exact, device=rows.device)
        if not len(self._firsts):
            return totals
        add = np.add if combine == "sum" else np.maximum  # torch's index_add_ takes 6 times as long
        totals.numpy()[:, self._there] = add.reduceat(rows.numpy(), self._firsts, axis=1)
        return totals


def _cut(shapes: Sequence[torch.Size], width: int, most: int | None) -> list[list[Piece]]:
    """Return the pieces of each part, which has `most` rows at most; a piece is of whole rows."""
    parts: list[list[Piece]] = [[]]
    left = most
    for i, shape in enumerate(shapes):
        start = 0
        while start < shape.numel():
            if left == 0:
                parts.append([])
                left = most
            stop = shape.numel() if left is None else min(shape.numel(), start + left * width)
            parts[-1].append(piece := Piece(i, start, stop, shape))
            left = None if left is None else left - piece.rows(width)
            start = stop
    return parts


def _holds_cut(pieces: Sequence[Piece], tensor: int) -> bool:
    return any(piece.tensor == tensor and not piece.is_whole for piece in pieces)


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


def _at(rows: Tensor, index: Tensor, combine: str) -> Tensor:
    """Return the sum or maximum of the rows at each line of the index, [k, lines]."""
    chosen = F.pad(rows, (0, 1))[:, index]  # [k, lines, most rows of a line]
    return chosen.sum(-1) if combine == "sum" else chosen.amax(-1)


def _index(of_row: Tensor, tensors: int) -> tuple[Tensor, Tensor]:
    """Return the rows of each bundle [bundles, BUNDLE], and the bundles of each tensor.

    A bundle is of one tensor. The number behind the last one stands for none.
    """
    bundles: list[list[int]] = []
    of_tensor: list[list[int]] = [[] for _ in range(tensors)]
    for row, tensor in enumerate(of_row.tolist()):
        if not of_tensor[tensor] or len(bundles[of_tensor[tensor][-1]]) == BUNDLE:
            of_tensor[tensor].append(len(bundles))
            bundles.append([])
        bundles[of_tensor[tensor][-1]].append(row)
    return _table(bundles, len(of_row)), _table(of_tensor, len(bundles))


def _table(lines: Sequence[Sequence[int]], none: int) -> Tensor:
    """Return the lines as a table, [lines, length of the longest], filled up with `none`."""
    table = torch.full((len(lines), max(1, *map(len, lines), 1)), none)
    for line, numbers in enumerate(lines):
        table[line, : len(numbers)] = torch.tensor(numbers, dtype=table.dtype)
    return table
