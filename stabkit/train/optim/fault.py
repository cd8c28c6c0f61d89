"""Hold gradients back before the update, as `FaultConfig` says."""

import torch
from torch import nn

from stabkit.config.fault import FaultConfig
from stabkit.monitor.layers import group_layers


def hold_back(model: nn.Module, config: FaultConfig, step: int) -> None:
    """Scale the gradients of every layer whose gradients have not returned at `step`.

    Raises ValueError if `first` is no layer of the model that trains.
    """
    if step >= config.until:
        return
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers, layer = group_layers([name for name, _ in named])
    if config.first is not None and config.first not in layers:
        raise ValueError(
            f"fault.first {config.first!r}: the model has no such layer that trains; "
            f"its layers: {', '.join(layers)}"
        )
    back = layers.index(config.first) if config.first and step >= config.until - config.lead else -1
    held = [
        p.grad for (_, p), i in zip(named, layer, strict=True) if p.grad is not None and i != back
    ]
    if held:
        torch._foreach_mul_(held, config.scale)
