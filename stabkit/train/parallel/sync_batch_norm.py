"""Batch normalization with the statistics of all processes' rows.

torch's SyncBatchNorm refuses tensors on a CPU. One implementation serves all devices, so that the
tests on a CPU hold for GPUs too.

Shapes: B rows of this process, C channels, … positions.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norms(model: nn.Module) -> None:
    """Replace every BatchNorm1d and 2d in `model`; tensors and their names stay the same.

    An optimizer may take the parameters before or after. Raises ValueError for a batch norm of
    another kind, which would use the statistics of its own process alone.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            kind = type(module).__name__
            raise ValueError(f"{name}: {kind} cannot take its statistics over several processes")
        model.set_submodule(name, SyncBatchNorm(module))


class SyncBatchNorm(_BatchNorm):
    """Normalize in training as `norm` would if the rows of all processes were one batch."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, x_BC: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x_BC)
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            normed, *_ = _Normalize.apply(x_BC, self.weight, self.bias, self.eps)
            return normed  # type: ignore[no-any-return]
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        normed, mean, var, count = _Normalize.apply(x_BC, self.weight, self.bias, self.eps)
        share = 1 / self.num_batches_tracked.double() if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean += share * (mean - self.running_mean)
            self.running_var += share * (var * count / (count - 1) - self.running_var)
        return normed  # type: ignore[no-any-return]

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [rows, channels, …], got {list(input.shape)}")


class _Normalize(torch.autograd.Function):
    """Return the output; over all processes, in float64: mean, biased variance [C] and count [1].

    The count is the number of values in a channel. The gradient is that of the sum of the losses of
    all processes, as in `gather_with_gradient`.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BC: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Each process's own mean and variance are exact whatever the offset. The variance of all
        # is a difference of squares of these, which keeps its digits only in float64.
        wide = _wide(x_BC)
        var, mean = torch.var_mean(wide, _all_but_channels(x_BC), correction=0)
        var, mean = var.double(), mean.double()
        rows = float(x_BC.numel() // x_BC.shape[1])
        count = torch.full((1,), rows, dtype=torch.float64, device=x_BC.device)
        sums = torch.cat([rows * mean, rows * (var + mean.square()), count])
        dist.all_reduce(sums)
        count = sums[-1:]
        mean, square = (sums[:-1] / count).chunk(2)
        var = (square - mean.square()).clamp(min=0)
        ctx.save_for_backward(x_BC, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        dtype = wide.dtype
        normed = F.batch_norm(wide, mean.to(dtype), var.to(dtype), weight, bias, eps=eps)
        return normed.to(x_BC.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x_BC, weight, mean, scale, count = ctx.saved_tensors
        wide, grad, dims = _wide(x_BC), _wide(grads[0]), _all_but_channels(x_BC)

        def along(per_channel: Tensor) -> Tensor:
            shape = [1, -1] + [1] * (x_BC.dim() - 2)
            return per_channel.to(wide.dtype).view(shape)

        unit = (wide - along(mean)) * along(scale)
        own = torch.cat([grad.sum(dims), (grad * unit).sum(dims)])
        own_bias, own_weight = own.chunk(2)
        sums = own.to(torch.float64, copy=True)
        dist.all_reduce(sums)
        of_mean, of_scale = (sums / count).chunk(2)
        inner = grad - along(of_mean) - unit * along(of_scale)
        gain = scale if weight is None else scale * weight
        grads_of = (None, None) if weight is None else (own_weight, own_bias)
        return (inner * along(gain)).to(x_BC.dtype), *grads_of, None


def _wide(x: Tensor) -> Tensor:
    """Return half precision as float32, in which torch's own batch norm computes too."""
    return x if x.dtype.itemsize >= 4 else x.float()


def _all_but_channels(x_BC: Tensor) -> list[int]:
    return [0, *range(2, x_BC.dim())]
