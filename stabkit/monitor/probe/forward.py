"""Records one forward of a model: the outputs of every layer and the logits of its attentions.

Attention is recorded below the modules, at the operations that torch runs. So it does not matter
whose attention module it is, nor whether it is fused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from stabkit.monitor.blocks import exact, local
from stabkit.monitor.probe.attention_logits import in_chunks, logits_of, summary, with_heads

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
# operations that may lie between the product of queries and keys and its softmax
_PASSES = {
    *("view", "_unsafe_view", "expand", "permute", "transpose", "unsqueeze", "squeeze", "slice"),
    *("select", "alias", "detach", "clone", "_to_copy", "add", "sub", "rsub", "mul", "div", "neg"),
    *("masked_fill", "where", "tanh", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"),
}


@dataclass
class ForwardRecord:
    """What a forward showed, by layer, on the device.

    A layer without a module of its own, or without attention, is absent.

    - `result`: what the forward returned;
    - `outputs`: root mean square and excess kurtosis of the layer's last output;
    - `logits`: the largest logit of each attention;
    - `entropies`: [heads] of each attention, see `attention_logits.summary`.
    """

    result: Any = None
    outputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    logits: dict[str, list[Tensor]] = field(default_factory=dict)
    entropies: dict[str, list[Tensor]] = field(default_factory=dict)


def record_forward(
    model: nn.Module, forward: Callable[[], Any], layer_of: Callable[[str], str]
) -> ForwardRecord:
    """Run `forward`, in which `model` is called, without gradients, and record it."""
    seen = ForwardRecord()
    layers = module_layers(model, layer_of)
    called: list[nn.Module] = []  # from the outermost to the one that runs now

    def finished(module: nn.Module, _: Any, output: Any) -> None:
        called.pop()
        layer = layers.get(module)
        tensor = first_tensor(output)
        if layer is None or tensor is None or any(layers.get(m) == layer for m in called):
            return
        seen.outputs[layer] = spread(tensor)

    def attention(heads_of: Callable[[int | None], Iterator[Tensor]]) -> None:
        layer = next((layers[m] for m in reversed(called) if m in layers), None)
        if layer is not None:
            heads = (head_count(module) for module in reversed(called))
            largest, entropy = summary(heads_of(next((n for n in heads if n), None)))
            seen.logits.setdefault(layer, []).append(largest)
            seen.entropies.setdefault(layer, []).append(entropy)

    with torch.no_grad(), hooks() as handles:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(lambda m, _: called.append(m)))
            handles.append(module.register_forward_hook(finished, always_call=True))
        with _Attentions(attention, model):
            seen.result = forward()
    return seen


@contextmanager
def hooks() -> Iterator[list[RemovableHandle]]:
    """Give a list for handles of hooks, and remove them at the end."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def module_layers(model: nn.Module, layer_of: Callable[[str], str]) -> Mapping[nn.Module, str]:
    """Return the modules all of whose parameters are in one layer."""
    inside: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        for i in range(len(parts)):
            inside.setdefault(".".join(parts[:i]), set()).add(layer_of(name))
    modules = dict(model.named_modules())
    return {modules[path]: min(s) for path, s in inside.items() if len(s) == 1 and path in modules}


def first_tensor(output: Any) -> Tensor | None:
    """Return a module's output, or the first tensor in it if it is a tuple, list or mapping."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((t for t in map(first_tensor, output) if t is not None), None)
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def spread(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return root mean square and excess kurtosis of all elements (0 if they are all equal)."""
    value = exact(local(tensor))
    centered = value - value.mean()
    std = centered.square().mean().sqrt()
    # divided by the deviation first, because the fourth power of a large output overflows
    kurtosis = (centered / std.clamp(min=torch.finfo(std.dtype).tiny)).pow(4).mean() - 3
    return value.square().mean().sqrt(), torch.where(std == 0, 0.0, kurtosis)


def head_count(module: nn.Module) -> int | None:
    """Return the number of heads that a module says it has."""
    found = (getattr(module, name, None) for name in HEADS)
    return next((n for n in found if isinstance(n, int) and n > 0), None)


class _Attentions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `found` at every attention, with a function from a number of heads to its logits.

    An attention is a fused one, or a softmax over the last axis of a product of two activations.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        found: Callable[[Callable[[int | None], Iterator[Tensor]]], None],
        model: nn.Module,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.products = WeakTensorKeyDictionary()
        weights = (local(p).untyped_storage().data_ptr() for p in model.parameters())
        self.weights = {pointer for pointer in weights if pointer}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where torch does not take operations apart itself
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func.name().removeprefix("aten::").split(".")[0]
        tensors = [a for a in args if isinstance(a, Tensor)]
        if any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
            return func(*args, **kwargs)  # sharded and nested tensors are not measured
        if name.startswith("_scaled_dot_product_") and not name.endswith("backward"):
            self.found(_fused(func, args, kwargs))
        elif name in ("_softmax", "_safe_softmax") and self._is_of_last_axis(*args[:2]):
            self.found(lambda heads: in_chunks(with_heads(args[0], heads)))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and self._is_product(name, tensors):
            self.products[result] = True
        return result

    def _is_of_last_axis(self, logits: Tensor, axis: int) -> bool:
        return logits in self.products and axis % logits.dim() == logits.dim() - 1

    def _is_product(self, name: str, tensors: list[Tensor]) -> bool:
        if name in ("bmm", "baddbmm"):
            factors = tensors[-2:]
            return not any(t.untyped_storage().data_ptr() in self.weights for t in factors)
        return name.rstrip("_") in _PASSES and any(t in self.products for t in tensors)


def _fused(func: Any, args: Any, kwargs: Any) -> Callable[[int | None], Iterator[Tensor]]:
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    mask = given.get("attn_mask", given.get("attn_bias"))
    query, key = given["query"], given["key"]
    causal, scale = bool(given.get("is_causal", False)), given.get("scale")
    return lambda heads: (
        with_heads(part, heads) for part in logits_of(query, key, mask, causal, scale)
    )
