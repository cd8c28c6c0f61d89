"""Runs a model in the middle of its training without leaving a trace."""

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from stabkit.monitor.blocks import exact_type, local

SEED = 0  # of every look, so that the model draws the same random numbers each time


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel, AveragedModel and torch.compile."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the devices of parameters and buffers, each once."""
    tensors = chain(model.parameters(), model.buffers())
    return list(dict.fromkeys(tensor.device for tensor in tensors))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Make the model eager and set evaluation mode; restore all that `probe.looking` names."""
    _reshard(model)
    devices = devices_of(model)
    with ExitStack() as stack:
        stack.enter_context(same_draws(devices))
        stack.enter_context(_buffers(model))
        stack.enter_context(_parameters(model))
        stack.enter_context(_evaluation(model))
        stack.enter_context(_unfused())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and the import is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for device in {"cpu", *(d.type for d in devices)} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_reshard, model)
        yield


@contextmanager
def same_draws(devices: Iterable[torch.device]) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators, those of CUDA `devices` too; restore them."""
    cuda = [device for device in devices if device.type == "cuda"]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(cuda):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.default_generator.manual_seed(SEED)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    # the attribute, not `eval()`: a model's own `train` may do more, such as merging weights
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    """Restore the contents of buffers, and their names: some models rebind their buffers."""
    names = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    # storages, because a buffer may be an expanded view, which cannot be written to
    storages = {}
    for _, _, buffer in names:
        storage = local(buffer).untyped_storage()
        if storage.data_ptr() not in storages and storage.size() > 0:
            storages[storage.data_ptr()] = storage, storage.clone()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module, name, buffer in names:
            module._buffers[name] = buffer
        for storage, kept in storages.values():
            storage.copy_(kept, non_blocking=True)


@contextmanager
def _parameters(model: nn.Module) -> Iterator[None]:
    """Raise RuntimeError when the body changed a parameter, which is too large to be copied."""
    before = _norms(model)
    yield
    after = _norms(model)
    # compared as text, because NaN is not equal to itself
    moved = [name for name, norm in before.items() if str(norm) != str(after.get(name))]
    if moved:
        raise RuntimeError(
            f"probe: running the model changed {len(moved)} of its parameters, {moved[0]} first. A "
            "forward that trains something, such as a momentum encoder, must not be probed: give "
            "`embed` of Probe or KNN a function that only computes features"
        )


def _norms(model: nn.Module) -> dict[str, float]:
    parts = {name: local(p.detach()) for name, p in model.named_parameters()}
    parts = {name: p for name, p in parts.items() if p.numel() > 0 and p.is_floating_point()}
    norms: dict[str, float] = {}
    for device in {p.device for p in parts.values()}:
        names = [name for name, p in parts.items() if p.device == device]
        values = torch._foreach_norm([parts[name] for name in names], 2, dtype=exact_type(device))
        norms |= zip(names, torch.stack(values).tolist(), strict=True)
    return norms


@contextmanager
def _unfused() -> Iterator[None]:
    """Turn off the one-kernel forward of torch's transformer layers, which hides attention."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _reshard(model: nn.Module) -> None:
    """Free the gathered weights of FSDP2.

    Its root stays gathered after a forward without a backward pass, and the next training step
    would then run on the weights from before the update.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    kind = getattr(sys.modules["torch.distributed.fsdp"], "FSDPModule", None)
    for module in model.modules():
        if kind is not None and isinstance(module, kind):
            module.reshard()
