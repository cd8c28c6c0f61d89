"""Carry out `ComputeConfig`: precision, memory layout, compilation."""

from typing import Any

import torch
from torch import nn

from stabkit.config import ComputeConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(compute: ComputeConfig, device: torch.device) -> torch.autocast:
    """Return the context in which the forward pass computes; it does nothing in fp32 and tf32."""
    dtype = _AUTOCAST.get(compute.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def build_scaler(compute: ComputeConfig, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler for the loss of fp16, whose gradients would underflow; else a dummy."""
    return torch.amp.GradScaler(device.type, enabled=compute.precision == "fp16")


def scaled_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, ask: bool) -> bool:
    """Update unless gradients of fp16 overflowed; return whether they did.

    Without `ask` the answer is False: to know it, the host would have to wait for the device.
    """
    scale = scaler.get_scale() if ask else 0.0
    scaler.step(optimizer)
    scaler.update()
    return ask and scaler.get_scale() < scale


def lay_out_and_compile(model: Any, compute: ComputeConfig) -> None:
    """Set the layout of the method's weights and compile its backbones, in place.

    Names of parameters stay as they are.
    """
    if compute.channels_last:
        model.to(memory_format=torch.channels_last)
    if compute.compile:
        for part in (model.online, getattr(model, "target", None)):
            if isinstance(part, nn.Module):
                # not dynamic: the code for a shape must not depend on the shapes seen before
                part.get_submodule("backbone").compile(dynamic=False)
