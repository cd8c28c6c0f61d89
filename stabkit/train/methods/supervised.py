"""Supervised cross-entropy on the same two views: the baseline for the other frameworks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.train.methods.heads import Output, against_chance
from stabkit.train.methods.moco import chance_nats


class Classifier(nn.Module):
    """The network that the optimizer trains: backbone and a linear layer on it."""

    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, num_classes)
        # Small weights, so that training starts at chance whatever the scale of the features.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)


class Supervised(nn.Module):
    """A classifier with labels, in the interface of the self-supervised frameworks."""

    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.online = Classifier(backbone, width, num_classes)
        self.num_classes = num_classes

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> Output:
        """Return the mean cross-entropy of both views, which pass as one batch."""
        feature = self.online.backbone(torch.cat([view1, view2]))
        scores = self.online.head(feature)
        loss = F.cross_entropy(scores, labels.repeat(2))
        return Output(loss, *(x[: len(view1)].detach() for x in (feature, scores)))

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """Compare with chance among the classes."""
        return against_chance(loss, chance_nats(self.num_classes))
