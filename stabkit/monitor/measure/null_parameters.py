"""Parameters whose true gradient is zero: what they have is the rounding of larger terms.

The loss does not depend on them. A bias that all samples share is subtracted by a BatchNorm behind
it, and the bias of all keys of an attention is removed by its softmax. Adam divides their rounding
by its own size, and so moves them by full steps in random directions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.monitor.model_blocks import ModelBlocks

# Biases of query, key and value in one tensor. Only the key's third can be null.
PACKED = ("qkv.bias", "in_proj_bias", "c_attn.bias")
# The RMS of a bias' gradient over the largest of the other tensors of its module. In float32 it
# was 2e-9 to 2e-5 where the true gradient is zero, and 1e-2 to 10 elsewhere (ViTs and a GPT). A
# gradient that is small in a whole module, as behind a small LayerScale, is not small beside it.
ROUNDING = 1024  # times the distance from 1 to the next number of its type: 1.2e-4 in float32
STEPS = 8  # in a row that a parameter is null, before its name is reported
ELEMENTS = 8  # the gradient of fewer may be small by chance


class NullParameters:
    """Finds them by the gradients of the steps. The units are those of `blocks`."""

    def __init__(
        self, names: Sequence[str], parameters: Sequence[Tensor], blocks: ModelBlocks
    ) -> None:
        self.names = [
            names[tensor] if piece.is_whole else f"{names[tensor]}[{piece.start}:{piece.stop}]"
            for tensor, piece in zip(blocks.units, blocks.pieces_of_units, strict=True)
        ]
        modules = [names[tensor].rpartition(".")[0] for tensor in blocks.units]
        self._others = [
            [j for j, other in enumerate(modules) if other == module and j != i]
            for i, module in enumerate(modules)
        ]
        self._limit = [_limit(names[i], parameters[i]) for i in blocks.units]
        self._streak = np.zeros(len(modules), dtype=np.int64)  # steps in a row that it is null
        self._known: set[str] = set()
        self._new: list[str] = []

    def find(self, squares: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which units are null at which steps, [steps, units].

        Each step is judged alone, so a resumed run records what an unbroken one does. `squares`,
        `counts` [steps, units]: the sum of squares and the number of the gradient's elements.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            means = squares / counts
        found = np.zeros(means.shape, dtype=bool)
        for i in (i for i, limit in enumerate(self._limit) if limit and self._others[i]):
            others = means[:, self._others[i]]
            others = np.where(np.isfinite(others), others, 0.0).max(axis=1)
            known = np.isfinite(means[:, i]) & (others > 0)
            found[known, i] = means[known, i] <= self._limit[i] ** 2 * others[known]
            self._streak[i] = self._streak[i] + known.sum() if found[known, i].all() else 0
        names = [self.names[i] for i in np.flatnonzero(self._streak >= STEPS)]
        self._new += [name for name in names if name not in self._known]
        self._known.update(names)
        return found

    def take_new(self) -> list[str]:
        """Return the names that were found since the last call and never before."""
        new, self._new = self._new, []
        return new


def packed_biases(names: Sequence[str], parameters: Sequence[Tensor]) -> list[int]:
    """Return which parameters hold the biases of query, key and value, in three equal parts."""
    return [
        i
        for i, (name, p) in enumerate(zip(names, parameters, strict=True))
        if name.endswith(PACKED) and p.ndim == 1 and p.numel() % 3 == 0
    ]


def _limit(name: str, parameter: Tensor) -> float:
    """Return the largest relative gradient of a null parameter; 0 if it cannot be told.

    Half precision rounds so coarsely that nothing can be told.
    """
    exact_enough = parameter.dtype in (torch.float32, torch.float64)
    is_bias = name.rpartition(".")[2].endswith("bias") and parameter.ndim == 1
    if not exact_enough or not is_bias or parameter.numel() < ELEMENTS:
        return 0.0
    return ROUNDING * torch.finfo(parameter.dtype).eps
