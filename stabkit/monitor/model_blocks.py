"""The tensors of a model as `Blocks`, and the sums over them.

On a CPU a model is looked at part by part. A part fits the cache of a core, so that only the first
of all passes over it waits for the memory, and a large tensor is read where it is. Elsewhere the
model is one part, to which all tensors are copied at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.monitor.blocks import Blocks, Piece, exact_type, is_sharded, local
from stabkit.monitor.ranks import world_size

# Widths. In a small model wide rows would be mostly padding; in a large one narrow rows would need
# a large index.
SMALL, LARGE = 256, 1024
PART = 2**18  # elements of a part on a CPU, 1 MiB
OWN = 2**13  # elements of a tensor that is large enough to be a part
BUNDLE = 64  # rows that are added up first: else the index would be as wide as the largest tensor


class ModelBlocks:
    """`parts` hold one kind of tensors after another: gradients, parameters, ...

    A sharded parameter (FSDP) has only this rank's shard here.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        own = [local(p) for p in parameters]
        self.device = device = own[0].device
        self.exact = exact_type(device)
        self.sharded = any(map(is_sharded, parameters))
        width = SMALL if sum(p.numel() for p in own) < 2**22 else LARGE
        cut = _cut if device.type == "cpu" else _uncut
        parts = cut([p.shape for p in own], width)
        rows = [sum(piece.rows(width) for piece in pieces) for pieces in parts]
        first = [sum(rows[:i]) for i in range(len(rows))]
        double = any(p.dtype == torch.float64 for p in own)
        self.dtype = torch.float64 if double else torch.float32
        room = torch.zeros(max(rows), width, dtype=self.dtype, device=device)
        scratch = torch.zeros_like(room)
        # a single part needs no second room: nothing is shown between a step's beginning and end
        kept = (
            room
            if len(parts) == 1
            else torch.zeros(sum(rows), width, dtype=self.dtype, device=device)
        )
        self.parts = [
            Blocks(room[:n], scratch[:n], kept[at : at + n], pieces, at)
            for pieces, n, at in zip(parts, rows, first, strict=True)
        ]
        self._pieces = [piece for pieces in parts for piece in pieces]
        counts = [piece.rows(width) for piece in self._pieces]
        self._first_rows = np.cumsum([0, *counts])[:-1]
        self._tensors = [piece.tensor for piece in self._pieces]
        self._flat = sorted({piece.tensor for piece in self._pieces if not piece.is_whole})
        self.of_row = torch.cat([part.of_row for part in self.parts])
        """[blocks] the number of the tensor that a row is of."""
        self._none = torch.zeros(len(self.of_row), dtype=self.exact, device=device)
        self._bundles, self._index = (index.to(device) for index in _index(self.of_row, len(own)))
        self._share: Tensor | None = None
        if self.sharded:
            share = torch.tensor([1 / _replicas(p) for p in parameters], dtype=torch.float64)
            self._share = share.to(device)[self.of_row]

    def flat(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the tensors as parts take them: plain, dense, and flat where they are cut."""
        found = list(tensors)
        if self.sharded or not all(t is None or t.layout is torch.strided for t in tensors):
            found = [None if t is None else local(t) for t in tensors]
        for i in self._flat:
            tensor = found[i]
            found[i] = None if tensor is None else tensor.reshape(-1)
        return found

    def of_tensors(self, found: Sequence[Mapping[int, Tensor]], combine: str) -> Tensor:
        """Return sums or maxima over each tensor, [k, tensors], of this rank alone.

        `found`: k times the numbers of a part's blocks, by the part's first row; what is not there
        is 0. A maximum is not below 0.
        """
        whole = [
            torch.cat([one.get(p.first, self._none[p.rows]) for p in self.parts]) for one in found
        ]
        rows = torch.stack([one.to(self.exact) for one in whole])
        if combine == "sum" and self._share is not None:
            rows = rows * self._share
        if rows.is_cuda:  # where adding at an index has no fixed order
            return _at(_at(rows, self._bundles, combine), self._index, combine)
        totals = torch.zeros(len(rows), len(self._index), dtype=self.exact, device=rows.device)
        if len(self._pieces):
            # torch's index_add_ takes 6 times as long
            add = np.add if combine == "sum" else np.maximum
            of_pieces = add.reduceat(rows.numpy(), self._first_rows, axis=1)
            add.at(totals.numpy(), (slice(None), self._tensors), of_pieces)
        return totals


def _uncut(shapes: Sequence[torch.Size], width: int) -> list[list[Piece]]:
    """Return the pieces of a single part: whole tensors."""
    whole = [Piece(i, 0, shape.numel(), shape) for i, shape in enumerate(shapes)]
    return [[piece for piece in whole if piece.stop]]


def _cut(shapes: Sequence[torch.Size], width: int) -> list[list[Piece]]:
    """Return the pieces of each part, PART elements at most.

    What fills whole rows of a large tensor is a part of its own, which can be read where it is.
    The rest is gathered.
    """
    parts: list[list[Piece]] = []
    rest: list[list[Piece]] = [[]]
    left = PART // width
    for i, shape in enumerate(shapes):
        size, start = shape.numel(), 0
        whole = size // width * width if size >= OWN else 0
        while start < whole:
            parts.append([Piece(i, start, min(whole, start + PART), shape)])
            start = parts[-1][0].stop
        while start < size:
            if not left:
                rest.append([])
                left = PART // width
            rest[-1].append(piece := Piece(i, start, min(size, start + left * width), shape))
            left -= piece.rows(width)
            start = piece.stop
    return parts + [pieces for pieces in rest if pieces or not parts]


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
