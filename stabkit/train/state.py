"""Everything that must survive a restart, and the one file that holds it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stabkit.config import RunConfig, run_id
from stabkit.monitor.ranks import world_size
from stabkit.monitor.torch_files import write_tensors
from stabkit.rundir import ForeignFolderError, make_inside
from stabkit.train.checkpoint_file import (
    check_like,
    check_optimizer,
    check_trainable,
    read_checkpoint,
)
from stabkit.train.compute import build_scaler, lay_out_and_compile
from stabkit.train.knn_bank import KnnBank
from stabkit.train.methods.build import Method, build_method
from stabkit.train.models.build import build_backbone
from stabkit.train.optim.build import build_optimizer
from stabkit.train.optim.clipping import Stabilizer
from stabkit.train.parallel.sync_batch_norm import synchronize_batch_norms
from stabkit.train.weights import fill


@dataclass(frozen=True)
class TrainState:
    """A training before its next step.

    Random numbers need no state: they follow from the step.
    """

    model: Method
    optimizer: torch.optim.Optimizer
    bank: KnnBank
    stabilizer: Stabilizer
    scaler: torch.amp.GradScaler
    network: nn.Module  # what a step calls: `model`, or the DDP around it


def build_state(
    config: RunConfig, num_images: int, device: torch.device, num_classes: int = 0
) -> TrainState:
    """Return a fresh start, which follows from the seed alone.

    The global random generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # attention of a few tokens is faster as plain products on a CPU
        backbone = build_backbone(config.model, config.data.image_size, device.type != "cpu")
        width = backbone.num_features
        model = build_method(config.method, backbone, width, num_classes)
    if world_size() > 1:
        synchronize_batch_norms(model)
    model.to(device)
    lay_out_and_compile(model, config.compute)
    size = max(1, round(config.knn.fifo * num_images))
    optimizer = build_optimizer(model.online, config.optim, config.compute.fused_optimizer)
    stabilizer = Stabilizer(model.online, config.optim)
    bank, scaler = KnnBank(size, width, device), build_scaler(config.compute, device)
    return TrainState(model, optimizer, bank, stabilizer, scaler, model)


def save_state(state: TrainState, config: RunConfig, step: int, path: Path) -> None:
    """Write a checkpoint atomically: after a kill `path` holds the last one or this one, whole."""
    make_inside(path.parent)
    write_tensors({"run": run_id(config), "step": step} | whole_state(state), path)


def whole_state(state: TrainState) -> dict[str, Any]:
    """Return all that a checkpoint holds of a training; the tensors are those of `state`."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "bank": state.bank.state_dict(),
        "stabilizer": state.stabilizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }


def load_state(state: TrainState, config: RunConfig, path: Path) -> int:
    """Fill `state` from a checkpoint and return the step it stands at.

    Raises ValueError when the file is damaged or does not fit, ForeignFolderError when it belongs
    to another run.
    """
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; put a sound copy in its place, or delete it to start the run over"
        ) from None
    check_trainable(path, content)
    if content["run"] != run_id(config):
        raise ForeignFolderError(
            f"{path}: belongs to run {content['run']}, this configuration is {run_id(config)}; "
            "train it in a folder of its own"
        )
    if content["step"] > config.end:
        raise ValueError(f"{path}: step is {content['step']}, the run has {config.end}")
    check_optimizer(path, content["optimizer"], state.optimizer)
    check_like(path, "bank", content["bank"], state.bank.state_dict())
    if "stabilizer" in content:  # older checkpoints have none, and had no state to keep
        check_like(path, "stabilizer", content["stabilizer"], state.stabilizer.state_dict())
    if state.scaler.is_enabled():
        check_like(path, "scaler", content.get("scaler"), state.scaler.state_dict())
    fill(state.model, content["model"], str(path), "model")
    state.optimizer.load_state_dict(content["optimizer"])
    state.bank.load_state_dict(content["bank"])
    if "stabilizer" in content:
        state.stabilizer.load_state_dict(content["stabilizer"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler"])
    return int(content["step"])
