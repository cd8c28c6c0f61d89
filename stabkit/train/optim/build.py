"""Build the optimizer."""

from typing import Any

import torch
from torch import nn

from stabkit.config import OptimConfig
from stabkit.train.optim.stable_adamw import StableAdamW


def build_optimizer(
    model: nn.Module, config: OptimConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """Return an optimizer of the trainable parameters; its rate is set before every step.

    `fused` (adamw and sgd): one kernel for the whole update, instead of one for each operation over
    all tensors (foreach).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if _exempt(name, p, config)]
    decayed = [p for name, p in named if not _exempt(name, p, config)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.name in ("lars", "lamb"):
        # by default timm adapts only what it decays: without decay these would be SGD and Adam
        groups[0]["always_adapt"] = True
    return _with_rule([group for group in groups if group["params"]], config, fused)


def _with_rule(
    groups: list[dict[str, Any]], config: OptimConfig, fused: bool
) -> torch.optim.Optimizer:
    kernel = {"fused": True} if fused else {"foreach": True}
    betas, eps, momentum = (config.beta1, config.beta2), config.eps, config.momentum
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, 0.0, betas=betas, eps=eps, **kernel)
        case "stable_adamw":
            return StableAdamW(groups, 0.0, betas=betas, eps=eps)
        case "sgd":
            return torch.optim.SGD(groups, 0.0, momentum=momentum, **kernel)
        case "lars":
            from timm.optim.lars import Lars  # timm takes seconds to import

            # You et al. 2017, equation 6; the rate scales the step, not the momentum, as in MoCo v3
            return Lars(groups, 0.0, momentum=momentum, trust_coeff=config.trust, eps=0.0)
        case "lamb":
            from timm.optim.lamb import Lamb

            # You et al. 2020, Algorithm 2; timm's own clipping at 1 would hide instability
            return Lamb(groups, 0.0, betas=betas, eps=eps, max_grad_norm=None)


def _exempt(name: str, parameter: torch.Tensor, config: OptimConfig) -> bool:
    """Return whether a parameter gets no weight decay (and no adaptation by LARS and LAMB)."""
    # WeightNorm's gains are one number for each filter, whatever their shape
    small = parameter.ndim < 2 or name.endswith("weight.original0")
    if config.decay_all:
        return config.name in ("lars", "lamb") and small
    return small or name.endswith(("cls_token", "pos_embed"))
