"""The held-out kNN evaluation: fixed queries against a fixed bank, by the current backbone."""

import numpy as np
import torch
from torch import Tensor, nn

from stabkit.config import ComputeConfig, KnnConfig
from stabkit.monitor.knn.vote import knn_predict
from stabkit.monitor.probe.attention_logits import widened
from stabkit.monitor.ranks import rank, world_size
from stabkit.train.compute import autocast
from stabkit.train.data.image_set import moved
from stabkit.train.data.load import ImageSet
from stabkit.train.data.views import plain_view
from stabkit.train.parallel.reduce import gather
from stabkit.train.randomness import permutation

CHUNK = 256  # images in a forward pass; with more, activations leave a CPU's cache


class HeldoutKnn:
    """Fixed queries and a fixed bank: the same for every run on a data set, in the same order.

    Each process holds and encodes a share of both and gets the features of all.
    """

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

    def predict(self, backbone: nn.Module, compute: ComputeConfig) -> Tensor | None:
        """Return predicted classes [queries]; None when the features are no longer finite."""
        with autocast(compute, self.bank.device):  # only the encoder: votes are float32
            bank, queries = encode(backbone, self.bank), encode(backbone, self.queries)
        bank = gather(widened(bank))[: len(self.bank_labels)]
        queries = gather(widened(queries))[: len(self.labels)]
        if not (bank.isfinite().all() and queries.isfinite().all()):
            return None
        return knn_predict(
            queries, bank, self.bank_labels, self.num_classes, self.k, self.config.temperature
        )


@torch.no_grad()
def encode(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return features [images, D] in evaluation mode; the mode is restored."""
    training = backbone.training
    backbone.eval()
    features = torch.cat([backbone(chunk) for chunk in torch.split(images, CHUNK)])
    backbone.train(training)
    return features


def _subset(
    images: ImageSet, count: int, image_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return this process's equal share of the images, and the labels of all.

    Where the count does not divide, the last shares repeat images; the labels do not.
    """
    index = permutation(seed=0, epoch=0, n=len(images))[:count]
    labels = torch.from_numpy(images.labels[index]).to(device)
    share = -(-len(index) // world_size())
    own = np.resize(index, share * world_size())[rank() * share : (rank() + 1) * share]
    return plain_view(moved(images.load(own), device), image_size), labels
