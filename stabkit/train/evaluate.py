"""The held-out kNN evaluation: fixed queries against a fixed bank, by the current backbone."""

import torch
from torch import Tensor, nn

from stabkit.config import KnnConfig
from stabkit.monitor.knn import knn_predict
from stabkit.train.data import ImageSet
from stabkit.train.image_set import moved
from stabkit.train.randomness import permutation
from stabkit.train.views import plain_view

CHUNK = 256  # images a forward pass: more falls out of a CPU cache


class HeldoutKnn:
    """Queries and bank are the same images in the same order for every run on a data set."""

    def __init__(
        self,
        train: ImageSet,
        heldout: ImageSet,
        config: KnnConfig,
        image_size: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.num_classes = len(train.classes)
        self.bank, self.bank_labels = _subset(train, config.bank, image_size, device)
        self.queries, self.labels = _subset(heldout, config.queries, image_size, device)
        self.k = min(config.k, len(self.bank_labels))

    def predict(self, backbone: nn.Module) -> Tensor | None:
        """[queries] predicted classes; None when the features are no longer finite."""
        bank, queries = encode(backbone, self.bank), encode(backbone, self.queries)
        if not (bank.isfinite().all() and queries.isfinite().all()):
            return None
        return knn_predict(
            queries, bank, self.bank_labels, self.num_classes, self.k, self.config.temperature
        )


@torch.no_grad()
def encode(backbone: nn.Module, images: Tensor) -> Tensor:
    """[images, D] features in evaluation mode; the mode is put back."""
    training = backbone.training
    backbone.eval()
    features = torch.cat([backbone(chunk) for chunk in torch.split(images, CHUNK)])
    backbone.train(training)
    return features


def _subset(
    images: ImageSet, count: int, image_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    index = permutation(seed=0, epoch=0, n=len(images))[:count]
    labels = torch.from_numpy(images.labels[index]).to(device)
    return plain_view(moved(images.load(index), device), image_size), labels
