"""The parameter groups of the optimizers, as they are when a Monitor attaches to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

NO_SETTING = ("params", "param_names", "name")


def param_groups(
    optimizers: Sequence[Optimizer], layers: Mapping[str, Sequence[Tensor]]
) -> list[dict[str, Any]]:
    """Return what each group holds and how it is trained, as plain data; empty for one group alone.

    `layers`: the parameters of each layer. Groups are numbered through all optimizers, as `lr.1`
    is. Each has `group`, `optimizer`, its `name` if it has one, `settings`, and `elements`: how
    many elements of each layer it holds.
    """
    layer_of = {id(p): layer for layer, parameters in layers.items() for p in parameters}
    groups = [(one, group) for one in optimizers for group in one.param_groups]
    if len(groups) < 2:
        return []
    return [
        {
            "group": number,
            "optimizer": type(optimizer).__name__,
            **({"name": group["name"]} if isinstance(group.get("name"), str) else {}),
            "settings": group_settings(group),
            "elements": _elements(group["params"], layer_of),
        }
        for number, (optimizer, group) in enumerate(groups)
    ]


def _elements(parameters: Sequence[Tensor], layer_of: Mapping[int, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for p in parameters:
        if (layer := layer_of.get(id(p))) is not None:
            found[layer] = found.get(layer, 0) + p.numel()
    return found


def group_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group that are numbers, text or lists of numbers."""
    plain = {name: _plain(option) for name, option in group.items() if name not in NO_SETTING}
    return {str(name): option for name, option in plain.items() if option is not None}


def _plain(option: Any) -> Any:
    """Return an option as plain data, or None."""
    if isinstance(option, Tensor):
        return option.item() if option.numel() == 1 and not option.is_meta else None
    if isinstance(option, tuple | list):
        numbers = [_plain(one) for one in option]
        return numbers if all(isinstance(one, int | float) for one in numbers) else None
    kind = next((kind for kind in (bool, int, float, str) if isinstance(option, kind)), None)
    return None if kind is None else kind(option)
