"""The optimizer and the per-step schedules."""

import math

import torch
from torch import nn

from stabkit.config import MethodConfig, OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; its learning rate is set before every step."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [] if config.decay_all else [p for name, p in named if _exempt(name, p)]
    decayed = [p for _, p in named if all(p is not q for q in plain)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        foreach=True,
    )


def _exempt(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim < 2 or name.endswith("cls_token")


def peak_lr(config: OptimConfig, batch: int) -> float:
    """The base rate scaled to the global batch by the configured rule (reference batch 256)."""
    scale = {"linear": batch / 256, "sqrt": math.sqrt(batch / 256), "none": 1.0}
    return config.lr * scale[config.lr_rule]


def lr_at(step: int, steps: int, config: OptimConfig, batch: int) -> float:
    """Linear warm-up from 0, then half a cosine to 0, per iteration; `step` counts from 0."""
    peak = peak_lr(config, batch)
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def momentum_at(step: int, steps: int, config: MethodConfig) -> float:
    """Momentum of the key encoder: constant, or 1-(1-m)(1+cos(πt/T))/2, which ends at 1."""
    if config.momentum_schedule == "constant":
        return config.momentum
    return 1 - (1 - config.momentum) * 0.5 * (1 + math.cos(math.pi * step / steps))
