"""The tensors of a model as `Blocks`, and the sums over them.

On a CPU a model is looked at part by part. A part fits the cache of a core, so that only the first
of all passes over it waits for the memory, and a large tensor is read where it is. Elsewhere the
model is one part, to which all tensors are copied at once.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

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

    What is added up together is a unit: a tensor, or each third of one of `in_thirds`. `units`
    holds the number of the tensor of each. A sharded parameter (FSDP) has only this rank's shard
    here.
    """

    def __init__(self, parameters: Sequence[Tensor], in_thirds: Collection[int] = ()) -> None:
        own = [local(p) for p in parameters]
        self.device = device = own[0].device
        self.exact = exact_type(device)
        self.sharded = any(map(is_sharded, parameters))
        width = SMALL if sum(p.numel() for p in own) < 2**22 else LARGE
        cut = _cut if device.type == "cpu" else _uncut
        units = _units([p.shape for p in own], in_thirds if not self.sharded else ())
        self.pieces_of_units, self.units = units, [unit.tensor for unit in units]
        self.numel = [
            parameters[u.tensor].numel() if u.is_whole else u.stop - u.start for u in units
        ]
        parts = cut(units, width)
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
        whole = [piece for pieces in parts for piece in pieces]
        self._flat = sorted({piece.tensor for piece in whole if not piece.is_whole})
        counts = torch.tensor([piece.rows(width) for piece in whole], dtype=torch.int64)
        tensors = torch.tensor([piece.tensor for piece in whole], dtype=torch.int64)
        of_units = torch.tensor([piece.unit for piece in whole], dtype=torch.int64)
        unit_of_row = of_units.repeat_interleave(counts)
        self._unit_of_row = unit_of_row.to(device)
        self.of_row = tensors.repeat_interleave(counts).to(device)
        """[blocks] for each row the number of its tensor."""
        self._none = torch.zeros(len(self.of_row), dtype=self.exact, device=device)
        self._bundles, self._index = (index.to(device) for index in _index(unit_of_row, len(units)))
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

    def of_units(self, found: Sequence[Mapping[int, Tensor]], combine: str) -> Tensor:
        """Return sums or maxima over each unit, [k, units], of this rank alone.

        `found`: k mappings from a part's first row to one number for each of the part's rows. A
        part that is not there counts as 0, so a maximum is never below 0.
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
        if combine == "sum":
            return totals.index_add_(1, self._unit_of_row, rows)
        of_all = self._unit_of_row.expand(len(rows), -1)
        return totals.scatter_reduce_(1, of_all, rows, "amax")


def _units(shapes: Sequence[torch.Size], in_thirds: Collection[int]) -> list[Piece]:
    """Return each unit as the one piece that it would be."""
    found: list[Piece] = []
    for i, shape in enumerate(shapes):
        third = shape.numel() // 3
        ends = [0, third, 2 * third, 3 * third] if i in in_thirds else [0, shape.numel()]
        for start, stop in pairwise(ends):
            found.append(Piece(len(found), i, start, stop, shape))
    return found


def _uncut(units: Sequence[Piece], width: int) -> list[list[Piece]]:
    """Return the pieces of a single part: whole units."""
    return [[unit for unit in units if unit.stop > unit.start]]


def _cut(units: Sequence[Piece], width: int) -> list[list[Piece]]:
    """Return the pieces of each part, PART elements at most.

    The whole rows of a large tensor are parts of their own, which can be read where they are. The
    rest of all tensors is gathered in further parts.
    """
    parts: list[list[Piece]] = []
    rest: list[list[Piece]] = [[]]
    left = PART // width
    for unit in units:
        start, size = unit.start, unit.stop - unit.start
        whole = start + size // width * width if size >= OWN else start
        while start < whole:
            parts.append([unit._replace(start=start, stop=min(whole, start + PART))])
            start = parts[-1][0].stop
        while start < unit.stop:
            if not left:
                rest.append([])
                left = PART // width
            stop = min(unit.stop, start + left * width)
            rest[-1].append(piece := unit._replace(start=start, stop=stop))
            left -= piece.rows(width)
            start = piece.stop
    return parts + [pieces for pieces in rest if pieces or not parts]


def _replicas(tensor: Tensor) -> int:
    """Return how many ranks hold the same part of the tensor: together they must count once."""
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


def _index(unit_of_row: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Return the rows of each bundle [bundles, BUNDLE], and the bundles of each unit.

    A bundle holds rows of one unit. Lines are filled up with the number after the last one, which
    stands for none.
    """
    bundles: list[list[int]] = []
    of_unit: list[list[int]] = [[] for _ in range(units)]
    for row, unit in enumerate(unit_of_row.tolist()):
        if not of_unit[unit] or len(bundles[of_unit[unit][-1]]) == BUNDLE:
            of_unit[unit].append(len(bundles))
            bundles.append([])
        bundles[of_unit[unit][-1]].append(row)
    return _table(bundles, len(unit_of_row)), _table(of_unit, len(bundles))


def _table(lines: Sequence[Sequence[int]], none: int) -> Tensor:
    """Return the lines as a table, [lines, length of the longest], filled up with `none`."""
    table = torch.full((len(lines), max(1, *map(len, lines), 1)), none)
    for line, numbers in enumerate(lines):
        table[line, : len(numbers)] = torch.tensor(numbers, dtype=table.dtype)
    return table
