"""Clip gradients, or skip the step, between the backward pass and the update."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stabkit.config import OptimConfig
from stabkit.monitor.layers import group_layers

DECAY = 0.97  # a step, of running norms: ZClip's value (Kumar et al. 2025, arXiv 2504.02507)
WARMUP = 25  # finite norms before a running norm is trusted
AGC_FLOOR = 1e-3  # smallest weight norm; without it weights that start at 0 would stay there


class Stabilizer:
    """Clip gradients and skip non-finite steps, as `OptimConfig` says.

    Clipping never makes the host wait. Gradients are left alone when their norm is not finite: a
    scale would spread one bad tensor to all of them. `skip_nonfinite` reads one flag from the
    device in every step, since optimizers count their steps on the host. `skipped` says whether the
    last step was skipped.

    `memory`: float64 [3]: how many norms were taken in, their running mean and variance.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        device = named[0][1].device
        self.config = config
        self.parameters = [p for _, p in named]
        self.layers, layer = group_layers([name for name, _ in named])
        self.memory = torch.zeros(3, dtype=torch.float64, device=device)
        self.skipped = False
        self._layer = torch.tensor(layer, device=device)
        self._present: list[int] = []
        self._index = self._layer[:0]
        if config.clip == "patch_embed" and "patch_embed" not in self.layers:
            raise ValueError(
                "optim.clip 'patch_embed': the model has no trained layer patch_embed; "
                f"its layers: {', '.join(self.layers)}"
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Act in every `optimizer.step()` from now on, after the hooks that are registered already.

        Attach a Monitor first: it then records the gradients as the backward pass left them.
        """
        if self.config.clip != "none" or self.config.skip_nonfinite:
            optimizer.register_step_pre_hook(lambda *_: self.before_step())
            optimizer.register_step_post_hook(lambda done, *_: self.after_step(done))

    @torch.no_grad()
    def before_step(self) -> None:
        present = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        parameters = [self.parameters[i] for i in present]
        grads = [g for p in parameters if (g := p.grad) is not None]
        if not grads:
            return
        self.skipped = self.config.skip_nonfinite and not _all_finite(grads)
        if self.skipped:
            for parameter in parameters:
                parameter.grad = None  # every optimizer skips a parameter without gradient
        elif self.config.clip == "agc":
            clip_units(parameters, grads, _threshold(self.config))
        elif self.config.clip != "none":
            self._clip(grads, present)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.skipped:
            for group in optimizer.param_groups:
                if "step" in group:  # timm's LAMB counts a step even without gradients
                    group["step"].sub_(1)

    def _clip(self, grads: list[Tensor], present: list[int]) -> None:
        """Scale each layer by one factor, which follows from its own norm or from the total."""
        at = _threshold(self.config)
        norms = torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float64))
        # An index that is a list is copied to the device: avoid it in most steps.
        if present != self._present:
            self._present, self._index = present, self._layer[present]
        squares = torch.zeros(len(self.layers), dtype=torch.float64, device=norms.device)
        of_layer = squares.index_add_(0, self._index, norms.square()).sqrt()
        total = norms.square().sum().sqrt()
        if self.config.clip == "global":
            factors = shrink(total, at).expand(len(self.layers))
        elif self.config.clip == "layer":
            factors = shrink(of_layer, at)
        elif self.config.clip == "patch_embed":
            number = self.layers.index("patch_embed")
            factors = torch.ones_like(of_layer)
            factors[number] = self._clip_to_running_mean(of_layer[number], at)
        else:
            factors = self._clip_to_z_score(total, at).expand(len(self.layers))
        torch._foreach_mul_(grads, list(factors[self._index].to(grads[0].dtype)))

    def _clip_to_running_mean(self, norm: Tensor, at: float) -> Tensor:
        """Return the factor that keeps `norm` below `at` times its running mean.

        The mean takes in norms capped at max(at, 2) times itself. A spike then hardly moves it.
        With a threshold below 1 it still follows the gradient, instead of sinking with it.
        """
        seen, mean, _ = self.memory
        trusted = (seen >= WARMUP) & (mean > 0)
        usual = torch.where(trusted, mean, torch.inf)
        self.memory = remember(self.memory, torch.minimum(norm, usual * max(at, 2.0)))
        return shrink(norm, usual * at)

    def _clip_to_z_score(self, norm: Tensor, at: float) -> Tensor:
        """Return ZClip's factor: a norm with a z-score above `at` becomes mean + at²/z·std.

        The running mean takes in the clipped norm.
        """
        seen, mean, variance = self.memory
        trusted = (seen >= WARMUP) & (variance > 0) & norm.isfinite()
        outlier = trusted & (norm - mean > at * variance.sqrt())
        target = torch.where(outlier, mean + at**2 * variance / (norm - mean), norm)
        self.memory = remember(self.memory, target)
        return shrink(norm, target)

    def look_on(self, norms: NDArray[np.float64]) -> None:
        """Take in norms of steps that were not clipped: `patch_embed` and `zclip` remember them."""
        clip = {"patch_embed": self._clip_to_running_mean, "zclip": self._clip_to_z_score}
        if take := clip.get(self.config.clip):
            for norm in torch.from_numpy(norms).to(self.memory):
                take(norm, _threshold(self.config))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"].to(self.memory)


def side_effects(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what a forward pass changes by itself: buffers and the momentum encoder."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {k: v.clone() for k, v in model.state_dict().items() if k not in trained}


def shrink(norm: Tensor, limit: Tensor | float) -> Tensor:
    """Return the factor, at most 1, that brings `norm` down to `limit`; 1 if it is not finite."""
    return torch.where(norm.isfinite() & (norm > limit), limit / norm, 1.0)


def remember(memory: Tensor, value: Tensor) -> Tensor:
    """Return `memory` [seen, mean, variance] after one more value; ignore a non-finite one.

    Mean and variance are plain over the first WARMUP values and exponential afterwards.
    """
    seen, mean, variance = memory
    n = seen + 1
    early = n <= WARMUP
    weight = torch.where(early, 1 / n, 1 - DECAY)
    moved = mean + weight * (value - mean)
    # Welford's update makes the plain variance exact; ZClip measures from the new mean
    square = torch.where(early, value - mean, value - moved) * (value - moved)
    updated = torch.stack([n, moved, variance + weight * (square - variance)])
    return torch.where(value.isfinite(), updated, memory)


def clip_units(parameters: Sequence[Tensor], grads: Sequence[Tensor], at: float) -> None:
    """Clip unit by unit, in place, as AGC (Brock et al. 2021, arXiv 2102.06171, section 4).

    A unit is all the weights of one output: a row of a matrix, a filter; a bias is one unit.
    """
    for parameter, grad in zip(parameters, grads, strict=True):
        limit = at * _unit_norm(parameter).clamp(min=AGC_FLOOR)
        grad.mul_(shrink(_unit_norm(grad), limit))


def _unit_norm(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=torch.float64)
    return norm


def _all_finite(grads: Sequence[Tensor]) -> bool:
    """Return whether all values are finite; waits for the device.

    The largest absolute value is finite if and only if all are. A sum of squares could overflow.
    """
    largest = torch.stack(torch._foreach_norm(list(grads), float("inf")))
    return bool(largest.isfinite().all())


def _threshold(config: OptimConfig) -> float:
    assert config.clip_at is not None  # every configuration that clips has it
    return config.clip_at
