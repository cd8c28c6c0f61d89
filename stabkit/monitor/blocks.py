"""A part of a model in rows of one width, so that a signal is a few passes over one tensor.

Each tensor fills whole rows, the last one padded with zeros. A pass costs the same however many
tensors there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# In float32 the square of a value above 1.8e19 is infinite, and that of one below 1e-19 loses
# digits. A row whose norm is infinite or below FAINT is therefore measured again, multiplied by a
# power of two, which loses no digit.
FAINT, LARGEST = 1e-14, torch.finfo(torch.float32).max
UP, DOWN = 2.0**100, 2.0**-80


class Piece(NamedTuple):
    """Elements `start` to `stop` of tensor number `tensor`, which has the shape `shape`.

    `unit`: the number of the sum that these elements belong to, that of a tensor or of its third.
    """

    unit: int
    tensor: int
    start: int
    stop: int
    shape: torch.Size

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.shape.numel()

    def rows(self, width: int) -> int:
        return -(-(self.stop - self.start) // width)


class Blocks:
    """`values` [blocks, width] shows pieces of a model's tensors: gradients, then parameters, ...

    `scratch` has the same size and is free for readers of `values`. Values are float32, or float64
    if a parameter is. `rows`: the range of its rows among those of the whole model; `first` is the
    first of them. `room` is free for what is shown; `kept` holds parameters until their update.
    """

    def __init__(
        self, room: Tensor, scratch: Tensor, kept: Tensor, pieces: Sequence[Piece], first: int
    ) -> None:
        """`first`: the number of the first row."""
        width = room.shape[1]
        counts = [piece.rows(width) for piece in pieces]
        self.values = self.room = room
        self.scratch, self.kept = scratch, kept
        self.first, self.rows = first, slice(first, first + len(room))
        self.exact = exact_type(room.device)
        """The type of sums over a layer: float32 has no integers beyond 2^24."""
        self._pieces = pieces
        self._has_own_rows = len(pieces) == 1 and (pieces[0].stop - pieces[0].start) % width == 0
        self._tensors = list(torch.split(room, counts)) if counts else []  # with their padding
        self._places = {id(one): _places(one, pieces, counts) for one in (room, scratch, kept)}
        self._patterns: dict[tuple[int | bool, ...], tuple[list[Tensor], list[Tensor]]] = {}
        self._squares: Tensor | None = None  # of `values`
        number = torch.arange(len(pieces)).repeat_interleave(
            torch.tensor(counts, dtype=torch.int64)
        )
        self._is_first = F.pad(number.diff() != 0, (1, 0), value=True)[: len(number)].to(
            room.device
        )
        self._tensor_of_row = number.to(room.device)  # of `_tensors`

    def show(self, values: Tensor) -> None:
        """Let the signals see these values."""
        self.values, self._squares = values, None

    @torch.no_grad()
    def fill(self, into: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """Copy the pieces of the model's tensors into `room`, `scratch` or `kept`; return it.

        `tensors`: as `ModelBlocks.flat` gives them. None leaves zeros.
        """
        pattern = id(into), *(tensors[piece.tensor] is not None for piece in self._pieces)
        if pattern not in self._patterns:  # the same few come again and again
            if len(self._patterns) > 64:
                self._patterns.clear()
            views, padding = self._places[id(into)]
            there = [view for view, is_there in zip(views, pattern[1:], strict=True) if is_there]
            absent = [v for v, is_there in zip(views, pattern[1:], strict=True) if not is_there]
            self._patterns[pattern] = there, absent + padding
        there, zeros = self._patterns[pattern]
        if zeros:
            torch._foreach_zero_(zeros)
        if there:
            torch._foreach_copy_(there, self._present(tensors))
        return into

    def read(self, into: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return the pieces as `fill` does, without a copy where a tensor is in rows already.

        What is returned must not be changed: it may be the training's own memory.
        """
        if self._has_own_rows:
            piece = self._pieces[0]
            tensor = tensors[piece.tensor]
            if tensor is not None and tensor.dtype == into.dtype and _is_plain(tensor):
                at = tensor.storage_offset() + piece.start
                return tensor.as_strided(into.shape, into.stride(), at)
        return self.fill(into, tensors)

    def is_empty(self, tensors: Sequence[Tensor | None]) -> bool:
        """Return whether none of the tensors has a piece here."""
        return all(tensors[piece.tensor] is None for piece in self._pieces)

    def squares(self) -> Tensor:
        """Return the sum of squares of each row in float64, [blocks].

        It is finite for finite values, and 0 only for zeros. It is worked out once for all that
        ask. On CUDA the first row of a tensor has the sum of the whole tensor. MPS has no float64
        and gets float32.
        """
        if self._squares is None:
            by_tensor = self.values.is_cuda and self._tensors  # none where all shards are elsewhere
            self._squares = self._squares_by_tensor() if by_tensor else self._squares_by_row()
        return self._squares

    def _squares_by_tensor(self) -> Tensor:
        """Sum in float64 in one pass, without a question that the host would have to wait for."""
        norms = torch.stack(torch._foreach_norm(self._tensors, 2, dtype=self.exact))
        return torch.where(self._is_first, norms.square_()[self._tensor_of_row], 0.0)

    def _squares_by_row(self) -> Tensor:
        """Sum in float32, and again in a safe range where that is not exact.

        On a CPU, widening everything takes 5 to 30 times as long as the norm.
        """
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        if norms.dtype == self.exact:
            return norms.square_()
        found = norms.to(self.exact)
        safe = norms.clamp(FAINT, LARGEST)
        if not safe.equal(norms):
            again = safe.ne(norms).nonzero().squeeze(1)
            scale = torch.where(norms[again] < FAINT, UP, DOWN)
            rows = self.values[again].mul_(scale[:, None])
            found[again] = torch.linalg.vector_norm(rows, dim=1).double().div_(scale)
        return found.square_()

    def _present(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            tensor if piece.is_whole else tensor[piece.start : piece.stop]
            for piece in self._pieces
            if (tensor := tensors[piece.tensor]) is not None
        ]


def _is_plain(tensor: Tensor) -> bool:
    """Return whether its elements lie in their order and writes to them are counted."""
    known = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return known and tensor.is_contiguous() and not tensor.is_inference()


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


def _places(
    rows: Tensor, pieces: Sequence[Piece], counts: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the place of each piece, and the padding behind those that leave some."""
    views, padding = [], []
    parts = torch.split(rows.view(-1), [n * rows.shape[1] for n in counts]) if counts else ()
    for part, piece in zip(parts, pieces, strict=True):
        size = piece.stop - piece.start
        views.append(part[:size].view(piece.shape) if piece.is_whole else part[:size])
        if size < len(part):
            padding.append(part[size:])
    return views, padding
