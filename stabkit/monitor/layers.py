"""Parameter names -> layers, in depth order."""

import re

# Wrappers that say nothing about depth: DDP, torch.compile, and a method that holds a backbone.
_WRAPPER = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+")
# Heads are short stacks that count as one layer each.
_HEADS = {"projector", "predictor", "head"}


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: its module path down to the first numbered module.

    `blocks.3.attn.qkv.weight` is in `blocks.3`, `patch_embed.proj.bias` in `patch_embed`; a bare
    tensor such as `cls_token` is a layer of its own.
    """
    parts = _WRAPPER.sub("", parameter).split(".")
    if len(parts) > 2 and parts[1].isdigit() and parts[0] not in _HEADS:
        return ".".join(parts[:2])
    return parts[0]


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
