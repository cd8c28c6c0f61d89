"""Models that are not ViTs: names in depth order, and compiled ones as they are eagerly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import stabkit
from stabkit.monitor.layers import group_layers
from tests.monitor.twins import ORDER, Watch, layer_of, loss_of, net, twins

Build = Callable[[], nn.Module]


def gpt2() -> nn.Module:
    """Return the names of transformers' GPT2LMHeadModel, whose output is the table of tokens."""

    def block() -> nn.Module:
        attention = {"c_attn": nn.Linear(4, 12), "c_proj": nn.Linear(4, 4)}
        mlp = {"c_fc": nn.Linear(4, 16), "c_proj": nn.Linear(16, 4)}
        inside = {"attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)}
        return nn.ModuleDict({"ln_1": nn.LayerNorm(4), **inside, "ln_2": nn.LayerNorm(4)})

    inside = {"wte": nn.Embedding(9, 4), "wpe": nn.Embedding(8, 4)}
    blocks = {"h": nn.ModuleList([block(), block()])}
    body = nn.ModuleDict({**inside, **blocks, "ln_f": nn.LayerNorm(4)})
    model = nn.ModuleDict({"transformer": body, "lm_head": nn.Linear(4, 9, bias=False)})
    model["lm_head"].weight = inside["wte"].weight
    return model


def vit_of_torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8))


def stages(name: str, depths: list[int], downsampled: str) -> list[str]:
    """Check that a stage's first reduction is in none of its blocks and comes before them."""
    names = []
    for i, depth in enumerate(depths):
        names += [f"{name}.{i}"] if downsampled and i else []
        names += [f"{name}.{i}.{downsampled}.{j}" for j in range(depth)]
    return names


RESNET = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
MODELS: dict[str, tuple[Build, list[str]]] = {
    "resnet18": (
        lambda: timm.create_model("resnet18", num_classes=2),
        ["conv1", "bn1", *RESNET, "fc"],
    ),
    "convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=2),
        ["stem", *stages("stages", [2, 2, 6, 2], "blocks"), "head"],
    ),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=2),
        ["patch_embed", *stages("layers", [2, 2, 6, 2], "blocks"), "norm", "head"],
    ),
    "gpt2": (gpt2, ["wte", "wpe", "h.0", "h.1", "ln_f"]),
    "torchvision vit": (
        vit_of_torchvision,
        ["conv_proj", "class_token", "pos_embedding"]
        + [f"layers.encoder_layer_{i}" for i in range(2)]
        + ["ln", "heads"],
    ),
    "encoder": (encoder, ["layers.0", "layers.1", "norm"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_in_depth_order(name: str) -> None:
    build, expected = MODELS[name]
    with torch.device("meta"):
        model = build()
    names = [path for path, _ in model.named_parameters()]
    layers, number = group_layers(names)
    assert layers == expected
    assert len(number) == len(names)
    wrapped = [f"module._orig_mod.{path}" for path in names]
    assert group_layers(wrapped) == (layers, number)


def test_batch_norm_and_dropout_are_as_without(tmp_path: Path) -> None:
    """Buffers are not touched and no random number is drawn: all of it is to the bit."""

    def loop(watch: Watch) -> tuple[list[float], nn.Module]:
        parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
        model, losses = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(2)), []
        model(torch.randn(2, 3, 9, 9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        watch.attach(model, optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(2, 3, 9, 9)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop, checked=False)
    signals = stabkit.open_run(tmp_path).signals()
    assert signals["layer"].unique().tolist() == ["0", "1", "5"]
    assert (signals["update_norm"] > 0).all()


def signals_of(model: nn.Module, compiled: Any, folder: Path) -> tuple[Any, list[float]]:
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.01)
    losses = []
    with stabkit.Monitor(compiled, optimizer, folder, full_every=1):
        for step in range(4):
            optimizer.zero_grad()
            loss: Tensor = loss_of(compiled, step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return stabkit.open_run(folder).signals(), losses


@pytest.mark.lengthy
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_has_the_signals_of_its_eager_twin(backend: str, tmp_path: Path) -> None:
    model = net()
    eager, losses = signals_of(model, model, tmp_path / "eager")
    model = net()
    found, of_compiled = signals_of(model, torch.compile(model, backend=backend), tmp_path / "c")
    assert found["layer"].tolist() == eager["layer"].tolist() == ORDER * 4
    # sums in another order, and Adam's first steps are of the size of their sign: 4 steps of 1e-6
    np.testing.assert_allclose(of_compiled, losses, rtol=1e-5)
    columns = [c for c in found if c not in ("step", "layer", "depth", "zero_count")]
    np.testing.assert_allclose(found[columns], eager[columns], rtol=1e-4)


@pytest.mark.lengthy
def test_a_compiled_optimizer_is_measured(tmp_path: Path) -> None:
    def loop(watch: Watch) -> tuple[list[float], nn.Module]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        step_compiled = torch.compile(optimizer.step, backend="eager")
        _, expected = watch.attach(model, optimizer, layer_of, ORDER)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            expected.row()
            expected.gradients(optimizer)
            expected.before(optimizer)
            step_compiled()
            expected.after(optimizer)
        return [], model

    twins(tmp_path, loop)
