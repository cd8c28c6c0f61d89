"""Weights of a backbone: read from a run, exported to a plain file, imported from other files."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stabkit.config import RunConfig, read_config, run_id, save_config
from stabkit.monitor.torch_files import read_tensors, write_tensors
from stabkit.printing import first_of
from stabkit.rundir import (
    ForeignFolderError,
    RunDir,
    Status,
    atomic_write,
    claim_for_file,
    claim_for_import,
    make_inside,
)
from stabkit.train.checkpoint_file import are_weights, read_checkpoint
from stabkit.train.models.build import build_backbone

Weights = dict[str, Tensor]
Encoder = Literal["online", "target"]

# What the authors call the two encoders, and the heads of a ViT and of a ResNet.
_OFFICIAL = {"online": "base_encoder.", "target": "momentum_encoder."}
_OFFICIAL_HEADS = ("head.", "fc.")
# Attention heads of the official ViTs. No tensor's shape shows the number; timm's vit_small has 6.
_OFFICIAL_ATTENTION = 12
_OFFICIAL_VITS = ("vit_small", "vit_conv_small", "vit_base", "vit_conv_base")
_OFFICIAL_WIDTHS = (384, 768)
_LISTED = 8


def fill(module: nn.Module, weights: Weights, source: str, what: str = "backbone") -> None:
    """Load every tensor or nothing. Raises ValueError that lists what does not match.

    A loader that takes only the tensors that match leaves the rest randomly initialized, and the
    evaluation does not show it.
    """
    own = module.state_dict()
    shapes = [
        f"{name} {list(weights[name].shape)}, should be {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    types = [
        f"{name} {weights[name].dtype}, should be {own[name].dtype}"
        for name in own
        if name in weights and _kind(weights[name]) != _kind(own[name])
    ]
    problems = [
        ("missing", [name for name in own if name not in weights]),
        ("unexpected", [name for name in weights if name not in own]),
        ("of another shape", shapes),
        ("of another type", types),
    ]
    found = [
        f"  - {len(names)} {what}: {first_of(names, _LISTED)}" for what, names in problems if names
    ]
    if found:
        if problems[1][1] in (["head.weight", "head.bias"], ["fc.weight", "fc.bias"]):
            found.append("  a classifier: take its last layer out of the file first")
        raise ValueError("\n".join([f"{source}: does not fit this {what}:", *found]))
    module.load_state_dict(weights)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return what must agree: precision may differ, but complex numbers and counts do not fit."""
    return tensor.is_floating_point(), tensor.is_complex()


def load_backbone(
    rundir: RunDir, device: torch.device, encoder: Encoder = "online"
) -> tuple[nn.Module, int]:
    """Return the backbone of a run's last checkpoint, and the checkpoint's step.

    Raises ValueError when the checkpoint is damaged or does not fit, ForeignFolderError when it
    belongs to another configuration.
    """
    path = rundir.checkpoint_file
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no checkpoint yet; the run writes one every runtime.checkpoint_every steps"
        )
    config, content = read_config(rundir.config_file), read_checkpoint(path)
    if content["run"] != run_id(config):
        raise ForeignFolderError(
            f"{path}: belongs to run {content['run']}, {rundir.config_file} is {run_id(config)}"
        )
    weights = _below(content["model"], f"{encoder}.backbone.")
    if not weights:
        raise ValueError(f"{path}: holds no {encoder} backbone")
    backbone = fresh_backbone(config, device)
    fill(backbone, weights, str(path))
    return backbone, int(content["step"])


def fresh_backbone(config: RunConfig, device: torch.device) -> nn.Module:
    """Return a backbone of random weights; the global random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        fused = device.type != "cpu"
        return build_backbone(config.model, config.data.image_size, fused).to(device)


def export(rundir: RunDir, path: Path, encoder: Encoder = "online") -> int:
    """Write {name: tensor} of a run's backbone, without heads; return the number of tensors.

    A plain ViT's file loads into timm's VisionTransformer(num_classes=0) with strict=True.
    Reparametrised tensors (WeightNorm) are written as the product that the network uses. Raises
    ForeignFolderError when `path` is a file that a run keeps.
    """
    claim_for_file(path)
    backbone, _ = load_backbone(rundir, torch.device("cpu"), encoder)
    for module in backbone.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    weights = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(weights, path)
    return len(weights)


def read_foreign(path: Path) -> tuple[dict[Encoder, Weights], str | None]:
    """Return the backbones in a file of the official moco-v3 code, and the architecture it names.

    Keys `module.base_encoder.*`, `module.momentum_encoder.*`, `module.predictor.*`, with or without
    `module.`; projectors hang at `.head.*` (ViT) or `.fc.*` (ResNet) and are dropped, as is the
    predictor. A file with neither encoder is taken as the plain weights of a backbone.
    """
    content = read_tensors(path)
    state = content.get("state_dict", content.get("model", content))
    if not (state and are_weights(state)):
        raise ValueError(
            f"{path}: holds no weights, neither directly nor as `state_dict` or `model`"
        )
    arch = content.get("arch") if isinstance(content.get("arch"), str) else None
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not any(name.startswith(tuple(_OFFICIAL.values())) for name in weights):
        return {"online": weights}, arch
    known = (*_OFFICIAL.values(), "predictor.")
    if strange := [name for name in weights if not name.startswith(known)]:
        raise ValueError(
            f"{path}: keys that belong to no known part of MoCo v3: {first_of(strange, _LISTED)}"
        )
    encoders: dict[Encoder, Weights] = {}
    for encoder in ("online", "target"):
        tensors = _below(weights, _OFFICIAL[encoder])
        kept = {n: t for n, t in tensors.items() if not n.startswith(_OFFICIAL_HEADS)}
        if kept:
            encoders[encoder] = kept
    return encoders, arch


def import_run(path: Path, config: RunConfig, rundir: RunDir) -> int:
    """Make a finished run of step 0 from a file of weights; return the number of tensors.

    The run can be evaluated and exported like any other. It has no optimizer and cannot be trained
    further. Raises ForeignFolderError when the folder holds anything, ValueError when a tensor does
    not fit or is left over.
    """
    claim_for_import(rundir)
    encoders, arch = read_foreign(path)
    if "online" not in encoders:
        raise ValueError(f"{path}: holds no base_encoder")
    backbone = fresh_backbone(config, torch.device("cpu"))
    _check_attention(path, arch, "target" in encoders, backbone)
    model: Weights = {}
    for encoder, weights in encoders.items():
        fill(backbone, weights, str(path))
        for name, tensor in backbone.state_dict().items():
            model[f"{encoder}.backbone.{name}"] = tensor.clone()
    with rundir.lock():
        claim_for_import(rundir)  # again: from here on nobody else can change the answer
        make_inside(rundir.checkpoint_file.parent)
        write_tensors({"run": run_id(config), "step": 0, "model": model}, rundir.checkpoint_file)
        atomic_write(rundir.config_file, save_config(config).encode())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rundir.write_meta({"imported": {"file": str(path), "sha256": digest, "arch": arch}})
        rundir.append_entry("imported", 0, file=str(path))
        rundir.write_status(Status("done", reason=f"imported from {path.name}"))
    return len(_below(model, "online.backbone."))


def _check_attention(path: Path, arch: str | None, official: bool, backbone: nn.Module) -> None:
    counts = {int(m.num_heads) for m in backbone.modules() if hasattr(m, "num_heads")}  # type: ignore[arg-type]
    heads, width = max(counts, default=None), getattr(backbone, "embed_dim", 0)  # None: a ResNet
    known = arch in _OFFICIAL_VITS if arch else official and width in _OFFICIAL_WIDTHS
    if known and heads is not None and heads != _OFFICIAL_ATTENTION:
        raise ValueError(
            f"{path}: MoCo v3's {arch or f'ViT of width {width}'} has {_OFFICIAL_ATTENTION} "
            f"attention heads, this configuration has {heads}; set "
            f"model.heads={_OFFICIAL_ATTENTION}"
        )


def _below(weights: Weights, prefix: str) -> Weights:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
