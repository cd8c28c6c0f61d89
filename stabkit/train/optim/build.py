"""Build the optimizer; compute the schedules of each step."""

import math
from typing import Any

import torch
from torch import nn

from stabkit.config import MethodConfig, OptimConfig
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
    """Whether a parameter gets no weight decay (and no adaptation by LARS and LAMB)."""
    # WeightNorm's gains are one number for each filter, whatever their shape
    small = parameter.ndim < 2 or name.endswith("weight.original0")
    if config.decay_all:
        return config.name in ("lars", "lamb") and small
    return small or name.endswith(("cls_token", "pos_embed"))


def peak_lr(config: OptimConfig, batch: int) -> float:
    """Return the base rate, scaled to the global batch by the configured rule (reference 256)."""
    scale = {"linear": batch / 256, "sqrt": math.sqrt(batch / 256), "none": 1.0}
    return config.lr * scale[config.lr_rule]


def lr_at(step: int, steps: int, config: OptimConfig, batch: int) -> float:
    """Return the rate at `step` (from 0): linear warm-up from 0, then half a cosine to 0."""
    return peak_lr(config, batch) * warmup_cosine(step, steps, config.warmup_steps)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate: linear warm-up from 0, then half a cosine to 0."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def momentum_at(step: int, steps: int, config: MethodConfig) -> float:
    """Return the key encoder's momentum: constant, or 1-(1-m)(1+cos(πt/T))/2, which ends at 1.

    A momentum of 0 stays 0 in both schedules: there is no average to slow down.
    """
    if config.momentum_schedule == "constant" or config.momentum == 0:
        return config.momentum
    return 1 - (1 - config.momentum) * 0.5 * (1 + math.cos(math.pi * step / steps))
