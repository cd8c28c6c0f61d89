"""Parameter names -> layers, in depth order."""

import re

# Wrappers that say nothing about depth: DDP, torch.compile, and a method that holds a backbone.
_WRAPPER = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+")
_NUMBERED = re.compile(r"\d+|\w*(?:layer|block)_\d+")  # `3`, torchvision's `encoder_layer_3`
# Short stacks that count as one layer each.
_STACKS = {"projector", "predictor", "head", "patch_embed"}


def without_wrappers(parameter: str) -> str:
    """The name a parameter has in the network itself, compiled modules inside it included."""
    return _WRAPPER.sub("", parameter).replace("._orig_mod.", ".")


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: its module path down to the first numbered module.

    `blocks.3.attn.qkv.weight` is in `blocks.3`, `encoder.layers.3.norm1.bias` in
    `encoder.layers.3`, `patch_embed.proj.bias` in `patch_embed`; a bare tensor such as `cls_token`
    is a layer of its own.
    """
    parts = _WRAPPER.sub("", parameter).split(".")
    numbered = (i for i in range(1, len(parts) - 1) if _NUMBERED.fullmatch(parts[i]))
    depth = None if parts[0] in _STACKS else next(numbered, None)
    return parts[0] if depth is None else ".".join(parts[: depth + 1])


def group_layers(parameters: list[str]) -> tuple[list[str], list[int]]:
    """Layers in depth order, and for each parameter the number of its layer.

    Depth is the order in which modules are registered. Bare tensors (class token, positions) are
    registered before the first module although they act after it, so they come second.
    """
    modules = [layer_of(p) for p in parameters if "." in _WRAPPER.sub("", p)]
    bare = [layer_of(p) for p in parameters if "." not in _WRAPPER.sub("", p)]
    layers = list(dict.fromkeys([*modules[:1], *bare, *modules]))
    number = {layer: i for i, layer in enumerate(layers)}
    return layers, [number[layer_of(p)] for p in parameters]
