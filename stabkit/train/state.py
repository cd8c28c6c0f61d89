"""Everything that must survive a restart, and its one file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stabkit.config import RunConfig, run_id
from stabkit.monitor.knn import KnnBank
from stabkit.rundir import commit
from stabkit.train.backbones import build_backbone
from stabkit.train.methods import Method, build_method
from stabkit.train.optim import build_optimizer
from stabkit.train.stabilizers import Stabilizer


@dataclass(frozen=True)
class State:
    """A training before its next step. Random numbers need no state: they follow from the step."""

    model: Method
    optimizer: torch.optim.Optimizer
    bank: KnnBank
    stabilizer: Stabilizer


def build_state(
    config: RunConfig, num_images: int, device: torch.device, num_classes: int = 0
) -> State:
    """A fresh start, decided by the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # attention of a few tokens is faster as plain products on a CPU
        backbone = build_backbone(config.model, config.data.image_size, device.type != "cpu")
        width = backbone.num_features
        model = build_method(config.method, backbone, width, num_classes)
    model.to(device)
    size = max(1, round(config.knn.fifo * num_images))
    optimizer = build_optimizer(model.online, config.optim)
    stabilizer = Stabilizer(model.online, config.optim)
    return State(model, optimizer, KnnBank(size, width, device), stabilizer)


def save_state(state: State, config: RunConfig, step: int, path: Path) -> None:
    """Atomic: whenever the process dies, `path` holds the last or the new checkpoint, whole."""
    content = {
        "run": run_id(config),
        "step": step,
        "torch": str(torch.__version__),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "bank": state.bank.state_dict(),
        "stabilizer": state.stabilizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    commit(temporary, path)


def load_state(state: State, config: RunConfig, path: Path) -> int:
    """Fill `state` from a checkpoint and return the step it stands at.

    Raises ValueError when the file is damaged or belongs to another configuration.
    """
    content = _read(path)
    if content["run"] != run_id(config):
        raise ValueError(
            f"{path}: belongs to run {content['run']}, this configuration is {run_id(config)}; "
            "train it in a folder of its own"
        )
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.bank.load_state_dict(content["bank"])
    if "stabilizer" in content:  # written since stabilizers exist; before, there was none to fill
        state.stabilizer.load_state_dict(content["stabilizer"])
    return int(content["step"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets many kinds through on broken bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict) or not {"run", "step", "model"} <= content.keys():
        raise ValueError(f"{path}: not a stabkit checkpoint")
    return content
