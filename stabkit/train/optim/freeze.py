"""Freeze parameters in mid-run, as `BranchConfig` says."""

from collections.abc import Sequence

import torch
from torch import nn


def freeze_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> None:
    """Keep the parameters `names` of `model` as they are in every step from now on.

    Attach it after the Monitor, which then still records their gradients. Every optimizer leaves a
    parameter without a gradient alone, its moments and its weight decay as well. Raises ValueError
    for a parameter that there is not.
    """
    known = dict(model.named_parameters())
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"branch.freeze: the model has no parameter {', '.join(missing)}")
    frozen = [known[name] for name in names]

    def forget_gradients(*_: object) -> None:
        for parameter in frozen:
            parameter.grad = None

    if frozen:
        optimizer.register_step_pre_hook(forget_gradients)
