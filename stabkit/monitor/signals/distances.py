"""How far the momentum encoder's parameters are, and the gradient where the first layer ends."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from stabkit.monitor.blocks import exact
from stabkit.monitor.probe.forward import hooks
from stabkit.monitor.probe.probe import ProbePass
from stabkit.monitor.signals.signal import ProbeSignal, register_signal


@register_signal
class TargetDistance(ProbeSignal):
    name = "target_distance"
    level = "features"
    unit = "share of the parameters' norm"
    formula = "‖θ-ξ‖/‖θ‖ of a layer's parameters in the model (θ) and its momentum encoder (ξ)"
    cost = "two passes over the parameters"
    reveals = "which layer the momentum encoder cannot follow"
    needs = ("target",)

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        apart, size = _norms_of_layers(seen)
        return {layer: _total(parts) / _total(size[layer]) for layer, parts in apart.items()}


@register_signal
class TeacherDistance(ProbeSignal):
    name = "teacher_distance"
    level = "teacher"
    unit = "share of the parameters' norm"
    formula = "‖θ-ξ‖/‖θ‖ of all parameters that the model (θ) and its teacher (ξ) both have"
    cost = "two passes over the parameters, shared with target_distance"
    reveals = "a teacher that lags behind, is not updated, or is a copy without memory (0)"
    needs = ("target",)

    def measure(self, seen: ProbePass) -> Tensor:
        apart, size = _norms_of_layers(seen)
        return _total([*chain(*apart.values())]) / _total([*chain(*size.values())])


Norms = dict[str, list[Tensor]]  # of each layer, those of its parameters


def _norms_of_layers(seen: ProbePass) -> tuple[Norms, Norms]:
    """Return the norms of the differences of model and momentum encoder, and of the model."""

    def measured() -> tuple[Norms, Norms]:
        apart: Norms = {}
        size: Norms = {}
        for name, p, other in seen.match.pairs:
            layer, value = seen.layer_of(name), _whole(p)
            theirs = _whole(other).to(value.device)
            apart.setdefault(layer, []).append(_norm(value - theirs))
            size.setdefault(layer, []).append(_norm(value))
        return apart, size

    return seen.once("target norms", measured)


@register_signal
class OutputGradNorm(ProbeSignal):
    name = "output_grad_norm"
    level = "features"
    unit = "of the loss, per unit of activation"
    formula = "‖∂L/∂x‖ of the probe's loss L, x all outputs of the first projection"
    cost = "one forward and backward of the probe's loss, without gradients of parameters"
    reveals = "what reaches the first layer, also when its parameters are frozen"
    needs = ("loss",)

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        if seen.probe.loss is None:
            raise ValueError("Probe: loss is not given, which this signal needs")
        outputs: list[Tensor] = []
        first: list[nn.Module] = []
        named = {module: name for name, module in seen.model.named_modules()}
        patches = {m for m, name in named.items() if name.rsplit(".", 1)[-1] == "patch_embed"}

        def finished(module: nn.Module, _: Any, output: Any) -> Tensor | None:
            if not (torch.is_grad_enabled() and isinstance(output, Tensor)):
                return None
            if first[:1] not in ([], [module]):
                return None
            first[:] = [module]
            if not output.requires_grad:  # frozen, and nothing before it learns
                output = output.detach().requires_grad_()
            assert isinstance(output, Tensor)
            outputs.append(output)
            return output

        with torch.enable_grad(), hooks() as handles:
            for module in patches or _projections(seen.model):
                handles.append(module.register_forward_hook(finished))
            loss = seen.probe.loss(seen.model)
        if not outputs or not loss.requires_grad:
            return {}
        grads = torch.autograd.grad(loss, outputs, allow_unused=True)
        norms = [_norm(grad) for grad in grads if grad is not None]
        parameter = next(name for name, _ in first[0].named_parameters(prefix=named[first[0]]))
        return {seen.layer_of(parameter): _total(norms)} if norms else {}


def _projections(model: nn.Module) -> list[nn.Module]:
    """Return the modules with parameters of their own.

    The first of them to end its forward is the first projection: a module that holds it ends
    later.
    """
    return [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(exact(tensor))
    return norm


def _whole(parameter: Tensor) -> Tensor:
    """Return the whole parameter: FSDP2 may have sharded one network and not the other."""
    value = parameter.detach()
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    assert isinstance(whole, Tensor)
    return whole


def _total(norms: list[Tensor]) -> Tensor:
    return torch.stack(norms).square().sum().sqrt()
