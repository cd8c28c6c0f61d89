"""Supervised cross-entropy on the same two views: the baseline of the frameworks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.train.heads import against_chance
from stabkit.train.moco import chance_nats


class Classifier(nn.Module):
    """What the optimizer trains: backbone and a linear layer on it."""

    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, num_classes)
        # small, so that training starts at chance whatever the scale of the features
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)


class Supervised(nn.Module):
    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.online = Classifier(backbone, width, num_classes)
        self.num_classes = num_classes

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of both views, and the features of the first, [B, D], detached."""
        feature = self.online.backbone(torch.cat([view1, view2]))
        loss = F.cross_entropy(self.online.head(feature), labels.repeat(2))
        return loss, feature[: len(view1)].detach()

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        return against_chance(loss, chance_nats(self.num_classes))
