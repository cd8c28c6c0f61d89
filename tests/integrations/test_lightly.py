"""lightly's losses and heads in a plain loop: MoCo, SimCLR and BYOL with the two lines added."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import stabkit
from tests.integrations.oracle import Norms, assert_recorded, grad_norms, same, weights

pytest.importorskip("lightly", reason="needs lightly: pip install lightly")

from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SimCLRTransform

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")


ENDS = ("", ".blocks.0", ".blocks.1")


class SimCLR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2,
            num_classes=0,
        )  # fmt: skip
        self.projection_head = SimCLRProjectionHead(16, 32, 16)
        self.criterion = NTXentLoss()

    def embed(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection_head(self.backbone(x))
        return out

    def forward(self, views: list[Tensor]) -> Tensor:
        loss: Tensor = self.criterion(self.embed(views[0]), self.embed(views[1]))
        return loss


class MoCo(SimCLR):
    def __init__(self) -> None:
        super().__init__()
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(32, 16))

    def forward(self, views: list[Tensor]) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, 0.9)
        update_momentum(self.projection_head, self.head_momentum, 0.9)
        with torch.no_grad():
            key = self.head_momentum(self.backbone_momentum(views[1]))
        loss: Tensor = self.criterion(self.embed(views[0]), key)
        return loss


class BYOL(MoCo):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BYOLProjectionHead(16, 32, 16)
        self.head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.head_momentum)
        self.prediction_head = BYOLPredictionHead(16, 32, 16)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, 0.9)
        update_momentum(self.projection_head, self.head_momentum, 0.9)
        loss = torch.zeros(())
        for a, b in (views, views[::-1]):
            with torch.no_grad():
                target = self.head_momentum(self.backbone_momentum(b))
            loss = loss + self.criterion(self.prediction_head(self.embed(a)), target) / 2
        return loss


def views(steps: int) -> list[list[Tensor]]:
    """Draw lightly's own augmentation once, so that both trainings see the same."""
    torch.manual_seed(1)
    transform = SimCLRTransform(input_size=32)
    images = [torchvision.transforms.ToPILImage()(torch.rand(3, 32, 32)) for _ in range(8)]
    drawn = [[transform(image) for image in images] for _ in range(steps)]
    return [[torch.stack([pair[i] for pair in step]) for i in (0, 1)] for step in drawn]


def train(
    kind: type[nn.Module], batches: list[list[Tensor]], folder: Path | None
) -> tuple[list[float], nn.Module, dict[int, Norms]]:
    torch.manual_seed(0)
    model: Any = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = stabkit.Monitor(model, optimizer, folder) if folder else None
    losses, seen = [], {}
    for step, pair in enumerate(batches):
        loss = model(pair)
        optimizer.zero_grad()
        loss.backward()
        seen[step] = grad_norms(model)
        optimizer.step()
        if monitor:
            monitor.log(loss=loss)
        losses.append(loss.item())
    if monitor:
        monitor.close()
    return losses, model, seen


@pytest.mark.parametrize("kind", [SimCLR, MoCo, BYOL])
def test_every_step_and_training_as_without(tmp_path: Path, kind: type[nn.Module]) -> None:
    batches = views(3)
    losses, model, seen = train(kind, batches, tmp_path)
    bare_losses, bare, _ = train(kind, batches, None)
    assert losses == bare_losses
    assert same(weights(model), weights(bare))
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == losses
    own = ("patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "norm")
    layers = {name: f"backbone.{name}" for name in own} | {"projection_head": "projection_head"}
    if kind is not SimCLR:  # momentum encoders: no gradients, weights only
        numbers = (0, 1, 3, 4) if kind is MoCo else (0, 1, 3)
        layers |= {f"head_momentum.layers.{i}": "head_momentum" for i in numbers}
        layers |= {f"backbone_momentum{end}": "backbone_momentum" for end in ENDS}
    if kind is BYOL:
        layers["prediction_head"] = "prediction_head"
    table = assert_recorded(tmp_path, seen, layers)
    assert table.filter(like="momentum").isna().all(axis=None)
