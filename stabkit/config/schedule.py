"""The schedules that the settings describe: learning rate and key momentum at each step."""

import math

from stabkit.config.method import MethodConfig
from stabkit.config.optim import OptimConfig


def peak_lr(config: OptimConfig, batch: int) -> float:
    """Return the base rate, scaled to the global batch by the configured rule (reference 256)."""
    scale = {"linear": batch / 256, "sqrt": math.sqrt(batch / 256), "none": 1.0}
    return config.lr * scale[config.lr_rule]


def lr_at(step: int, steps: int, config: OptimConfig, batch: int) -> float:
    """Return the rate at `step` (from 0): linear warm-up from 0, then what `schedule` says."""
    share = warmup_cosine(step, steps, config.warmup_steps)
    if config.schedule == "constant" and step >= config.warmup_steps:
        share = 1.0
    return peak_lr(config, batch) * share


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
