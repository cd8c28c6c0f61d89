"""Per-layer norms of gradients and parameters: a few fused passes, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LayerNorms:
    """Measures every layer of `parameters` at once; `layer[i]` is the layer number of the i-th."""

    def __init__(self, parameters: Sequence[Tensor], layer: Sequence[int], num_layers: int) -> None:
        self.parameters = list(parameters)
        self.layer = list(layer)
        self.num_layers = num_layers
        self._all = torch.tensor(self.layer, device=self.parameters[0].device)
        self._with_grad: tuple[int, ...] = ()
        self._index = self._all[:0]

    def measure(self) -> Tensor:
        """[3, layers] float32 on the device: gradient L2 norm, gradient max-abs, parameter L2 norm.

        A layer without any gradient is -1 in the first two rows (a norm cannot be). Non-finite
        values come through as they are.
        """
        present = tuple(i for i, p in enumerate(self.parameters) if p.grad is not None)
        if present != self._with_grad:  # changes only when layers are frozen or thawed
            self._with_grad = present
            self._index = self._all[list(present)]
        grads = [g for i in present if (g := self.parameters[i].grad) is not None]
        rows = torch.full((3, self.num_layers), -1.0, device=self._all.device)
        if grads:
            rows[0].scatter_reduce_(0, self._index, _squares(grads), "sum", include_self=False)
            largest = torch.stack(torch._foreach_norm(grads, float("inf"))).float()
            rows[1].scatter_reduce_(0, self._index, largest, "amax", include_self=False)
        rows[2].scatter_reduce_(0, self._all, _squares(self.parameters), "sum", include_self=False)
        # sqrt of what is a sum of squares, keeping the -1 of absent gradients
        rows[0] = torch.where(rows[0] < 0, rows[0], rows[0].sqrt())
        rows[2] = rows[2].sqrt()
        return rows


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """[tensors] squared L2 norms in float32; half precision is widened before it is summed."""
    double = any(t.dtype == torch.float64 for t in tensors)
    with torch.no_grad():
        norms = torch._foreach_norm(
            list(tensors), 2, dtype=torch.float64 if double else torch.float32
        )
        return torch.stack(norms).float().square()
