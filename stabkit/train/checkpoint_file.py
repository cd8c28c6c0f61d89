"""Check what a checkpoint holds before anything is filled from it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stabkit.monitor.torch_files import read_tensors
from stabkit.rundir import ForeignFolderError

_KINDS: dict[str, Any] = {"run": str, "step": int, "model": dict}
_FOR_TRAINING = ("optimizer", "bank")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return `run`, `step` and the tensors of `model`; the checkpoint of a training has more.

    Raises ValueError when the file is damaged or is no checkpoint.
    """
    content = read_tensors(path)
    if not _KINDS.keys() <= content.keys():
        raise ValueError(f"{path}: not a checkpoint of stabkit")
    for name, kind in _KINDS.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise ValueError(
                f"{path}: {name} is {type(content[name]).__name__}, should be {kind.__name__}"
            )
    if not are_weights(content["model"]):
        raise ValueError(f"{path}: model should hold named, plain tensors only")
    if content["step"] < 0:
        raise ValueError(f"{path}: step is {content['step']}, should be 0 or more")
    return content


def are_weights(content: Any) -> bool:
    """Return whether `content` maps names to plain tensors, which can fill a model."""
    return isinstance(content, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
        for name, tensor in content.items()
    )


def check_trainable(path: Path, content: dict[str, Any]) -> None:
    """Raise ForeignFolderError for imported weights, ValueError if a part is missing."""
    if "optimizer" not in content:
        problem = "imported weights, which can be evaluated but not trained on"
        raise ForeignFolderError(f"{path}: {problem}")
    if missing := [name for name in _FOR_TRAINING if name not in content]:
        raise ValueError(f"{path}: holds no {missing[0]}; a training cannot go on without it")


def check_like(path: Path, what: str, found: Any, own: Any) -> None:
    """Raise ValueError unless `found` has the keys, kinds and shapes of `own`.

    A copy into `own` would silently broadcast a tensor of another shape.
    """
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor):
            raise _wrong(path, what, found, "a tensor")
        if found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
            raise _wrong(path, what, found, f"{own.dtype} {list(own.shape)}")
    elif isinstance(own, dict):
        if not isinstance(found, dict):
            raise _wrong(path, what, found, "a dictionary")
        for key, value in own.items():
            if key not in found:
                raise ValueError(f"{path}: {what} has no {key}")
            check_like(path, f"{what}.{key}", found[key], value)
    elif isinstance(own, (int, float)) and not isinstance(found, (int, float)):
        raise _wrong(path, what, found, "a number")


def check_optimizer(path: Path, found: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless `found` is a state of `optimizer`.

    It has the same groups, and all it holds for a parameter has that shape or is one number.
    """
    own = optimizer.state_dict()
    check_like(path, "optimizer", found, {"state": {}, "param_groups": None})
    groups = found["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
        raise _wrong(path, "optimizer.param_groups", groups, f"{len(own['param_groups'])} of them")
    for number, (group, ours) in enumerate(zip(groups, own["param_groups"], strict=True)):
        settings = {key: v for key, v in ours.items() if isinstance(group, dict) and key in group}
        where = f"optimizer.param_groups.{number}"
        check_like(path, where, group, settings)
        if group.get("params") != ours["params"]:
            raise _wrong(path, f"{where}.params", group.get("params"), str(ours["params"]))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, state in found["state"].items():
        where = f"optimizer.state.{key}"
        if not (isinstance(key, int) and key < len(parameters) and isinstance(state, dict)):
            raise ValueError(f"{path}: {where} belongs to none of the {len(parameters)} parameters")
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                check_like(path, f"{where}.{name}", value, parameters[key])


def _wrong(path: Path, what: str, found: Any, right: str) -> ValueError:
    if isinstance(found, Tensor):
        is_now = f"{found.dtype} {list(found.shape)}"
    else:
        is_now = type(found).__name__
    return ValueError(f"{path}: {what} is {is_now}, should be {right}")
