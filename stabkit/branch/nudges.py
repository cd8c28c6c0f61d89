"""Small changes of a state: one unit in the last place of its weights, or a random kick."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def nudge(weights: Mapping[str, Tensor], number: int) -> None:
    """Move each weight of the matrices by one unit in the last place, up or down, in place.

    `number` seeds the choice of up or down. Another processor changes results by as much. To move
    one weight alone would not do: rounding often swallows its change within a few steps, and the
    branch is then the control once more. A weight of 0 has no last place, and biases may have a
    gradient that is nothing but rounding: both stay as they are.
    """
    generator = torch.Generator().manual_seed(number)
    for tensor in weights.values():
        if tensor.ndim < 2:
            continue
        up = torch.rand(tensor.shape, generator=generator).to(tensor.device) < 0.5
        aim = torch.where(up, torch.inf, -torch.inf).to(tensor.dtype)
        tensor.copy_(torch.where(tensor == 0, tensor, torch.nextafter(tensor, aim)))


def kick(weights: Mapping[str, Tensor], norm: float, number: int) -> None:
    """Move all weights in a random direction by `norm`, in place; `number` says which direction."""
    generator = torch.Generator().manual_seed(number)
    direction = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in weights.items()
    }
    scale = norm / distance(list(direction.values()))
    for name, tensor in weights.items():
        tensor.add_((direction[name] * scale).to(tensor.dtype))


def distance(differences: Sequence[Tensor]) -> float:
    """Return the norm of several tensors together."""
    squares = [one.double().square().sum() for one in differences]
    return float(torch.stack(squares).sum().sqrt())
