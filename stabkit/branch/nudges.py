"""Small changes of a state: one unit in the last place of one weight, or a random kick."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def nudge(weights: Mapping[str, Tensor], number: int) -> str:
    """Move one weight by one unit in the last place, in place; return its tensor's name.

    `number` says which one: it is drawn evenly from all weights of the matrices. A weight of 0 has
    no last place, and is passed over, as are biases, whose gradient may be nothing but rounding.
    """
    names = [name for name, tensor in weights.items() if tensor.ndim > 1 and tensor.any()]
    sizes = np.array([weights[name].numel() for name in names])
    rng = np.random.default_rng(number)
    while True:
        name = names[rng.choice(len(names), p=sizes / sizes.sum())]
        flat = weights[name].view(-1)
        at = int(rng.integers(len(flat)))
        if flat[at] != 0:
            flat[at] = torch.nextafter(flat[at], torch.full_like(flat[at], torch.inf))
            return str(name)


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
