"""How `ComputeConfig` is carried out."""

from typing import Any

import torch
from torch import Tensor, nn

from stabkit.config import ComputeConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(compute: ComputeConfig, device: torch.device) -> torch.autocast:
    dtype = _AUTOCAST.get(compute.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def build_scaler(compute: ComputeConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss of fp16, whose gradients would underflow; else passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=compute.precision == "fp16")


def scaled_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, ask: bool) -> bool:
    """Update, unless gradients of fp16 overflowed; whether they did, if asked (the host waits)."""
    scale = scaler.get_scale() if ask else 0.0
    scaler.step(optimizer)
    scaler.update()
    return ask and scaler.get_scale() < scale


def widened(tensor: Tensor) -> Tensor:
    """Half precisions as float32, others as they are."""
    return tensor.float() if tensor.dtype in _AUTOCAST.values() else tensor


def arrange(model: Any, compute: ComputeConfig) -> None:
    """Lay the method's weights out and compile its backbones, in place; names stay as they are."""
    if compute.channels_last:
        model.to(memory_format=torch.channels_last)
    if compute.compile:
        for part in (model.online, getattr(model, "target", None)):
            if isinstance(part, nn.Module):
                # each shape for itself: what a shape is compiled to must not hang on those before
                part.get_submodule("backbone").compile(dynamic=False)
