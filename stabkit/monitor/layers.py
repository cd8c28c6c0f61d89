"""Parameter names -> layers, in depth order."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

# Wrappers that say nothing about depth: DDP, torch.compile, Fabric, a method that holds a backbone.
_WRAPPER = re.compile(r"^(?:(?:module|_orig_mod|_forward_module|backbone)\.)+")
# Short stacks that count as one layer each.
_STACKS = {
    "stem", "patch_embed", "projector", "projection_head", "predictor", "prediction_head", "head",
}  # fmt: skip


def without_wrappers(parameter: str) -> str:
    """Return the name of a parameter in the network itself, without DDP or compiled wrappers."""
    return _WRAPPER.sub("", parameter).replace("._orig_mod.", ".")


def layer_of(parameter: str) -> str:
    """Return the layer a parameter belongs to.

    It is the module path down to the first numbered module, or to the numbered block within a
    numbered stage.

    `blocks.3.attn.qkv.weight` is in `blocks.3`, `stages.1.blocks.0.mlp.fc1.bias` in
    `stages.1.blocks.0`, `patch_embed.proj.bias` in `patch_embed`; a bare tensor such as `cls_token`
    is a layer of its own.
    """
    parts = without_wrappers(parameter).split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if i and is_number(part)), None)
    if number is None or parts[0] in _STACKS:
        return parts[0]
    inner = parts[number + 1 : number + 3]
    in_stage = len(parts) > number + 3 and inner[0] == "blocks" and is_number(inner[1])
    return ".".join(parts[: number + (3 if in_stage else 1)])


def is_number(part: str) -> bool:
    """Return whether a part of a module path numbers its module: `3`, or `encoder_layer_3`."""
    return part.isdigit() or re.fullmatch(r"\w*(?:layer|block)_\d+", part) is not None


def group_layers(
    parameters: Sequence[str], chosen: Callable[[str], str | None] | None = None
) -> tuple[list[str], list[int]]:
    """Return the layers in depth order, and for each parameter the number of its layer.

    `chosen`: the layer of each, instead of `layer_of`; layers are then in order of appearance.

    Depth is the order in which modules are registered; `in_order` knows better where a probe ran.
    Bare tensors (class token, positions) are registered before the first module although they act
    after it, so they come second. What holds the numbered blocks and more, such as `transformer.`
    or `encoder.`, is left out of the names.
    """
    names = shorten_names(parameters)
    found = [str(chosen(p)) for p in parameters] if chosen else _whole([*map(layer_of, names)])
    modules = [one for one, name in zip(found, names, strict=True) if "." in name]
    bare = [one for one, name in zip(found, names, strict=True) if "." not in name]
    layers = list(dict.fromkeys(found if chosen else [*modules[:1], *bare, *modules]))
    number = {layer: i for i, layer in enumerate(layers)}
    return layers, [number[one] for one in found]


def in_order(layers: Sequence[str], executed: Sequence[str]) -> list[str]:
    """Return the layers in the order in which a forward ran them.

    A layer that did not run keeps its place behind the layer before it.
    """
    order = [layer for layer in executed if layer in layers]
    for i, layer in enumerate(layers):
        if layer not in order:
            order.insert(order.index(layers[i - 1]) + 1 if i else 0, layer)
    return order


def by_layer(
    parameters: Sequence[T], layer: Sequence[int], layers: Sequence[str]
) -> dict[str, list[T]]:
    """Return the parameters of each layer, as `group_layers` numbers them."""
    found: dict[str, list[T]] = {name: [] for name in layers}
    for parameter, i in zip(parameters, layer, strict=True):
        found[layers[i]].append(parameter)
    return found


def shorten_names(parameters: Sequence[str]) -> list[str]:
    """Return names without the modules that only hold the numbered blocks and their neighbors.

    `bert.encoder.layer.3.output.dense.bias` becomes `layer.3.output.dense.bias`. Names stay apart:
    where two towers hold blocks of one name, both keep theirs.
    """
    paths = [without_wrappers(name).split(".") for name in parameters]
    while (wrapper := _outer(paths)) is not None:
        inside = [path[1:] if path[0] == wrapper else path for path in paths]
        paths = [without_wrappers(".".join(path)).split(".") for path in inside]
    return [".".join(path) for path in paths]


def _whole(found: Sequence[str]) -> list[str]:
    """Return layers without those that are only the numbered part of another one.

    `mid.mlp.1`, alone in `mid.mlp`, is no block but a part of the layer `mid`, if there is one.
    """
    layers = set(found)
    alone = Counter(layer.rpartition(".")[0] for layer in layers)
    parts = {}
    for layer in layers:
        holder, _, number = layer.rpartition(".")
        if is_number(number) and alone[holder] == 1:
            outer = [holder[:i] for i, letter in enumerate(holder) if letter == "."]
            parts[layer] = next((name for name in [holder, *outer[::-1]] if name in layers), layer)
    return [parts.get(layer, layer) for layer in found]


def _outer(paths: Sequence[Sequence[str]]) -> str | None:
    """Return the first module that holds numbered blocks further down and may go from names."""
    bodies = [path for path in paths if len(path) > 2 and path[0] not in _STACKS]
    if any(is_number(path[1]) for path in bodies):
        return None  # the blocks are at the top already
    for first in dict.fromkeys(path[0] for path in bodies):
        inside = [path for path in bodies if path[0] == first]
        others = [path for path in paths if path[0] != first]
        beside = {part for path in others for part in path[: 2 if len(path) > 2 else 1]}
        holds_blocks = any(is_number(part) for path in inside for part in path[2:-1])
        if holds_blocks and beside.isdisjoint(path[1] for path in inside):
            return first
    return None
