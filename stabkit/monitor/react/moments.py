"""What Adam's moments of a layer remember: over how many updates, and since when."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer


def beta2_of_layers(
    layers: Mapping[str, Sequence[Tensor]], optimizers: Sequence[Optimizer]
) -> dict[str, float]:
    """Return the largest beta2 of every layer that an optimizer with betas updates."""
    of_parameter = {
        id(p): float(group["betas"][1])
        for optimizer in optimizers
        for group in optimizer.param_groups
        if "betas" in group
        for p in group["params"]
    }
    known = {
        layer: [of_parameter[id(p)] for p in parameters if id(p) in of_parameter]
        for layer, parameters in layers.items()
    }
    return {layer: max(betas) for layer, betas in known.items() if betas}


def updates_made(optimizers: Sequence[Optimizer]) -> int | None:
    """Return the most updates that any parameter's moments hold; None if unknown."""
    counts = [
        int(state["step"])
        for optimizer in optimizers
        for state in optimizer.state.values()
        if "step" in state
    ]
    return max(counts, default=None)
