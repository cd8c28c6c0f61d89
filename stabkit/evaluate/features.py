"""Compute the features of a whole split, once for all evaluations of a frozen backbone."""

import numpy as np
import torch
from torch import Tensor, nn

from stabkit.train.data.image_set import moved
from stabkit.train.data.load import ImageSet
from stabkit.train.data.views import plain_view
from stabkit.train.heldout_knn import CHUNK, encode


def encode_set(
    backbone: nn.Module, images: ImageSet, image_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return features [N, D] of the plain view (no augmentation) and labels [N], in order.

    Raises ValueError when a feature is not finite: an accuracy would mean nothing.
    """
    parts = []
    for start in range(0, len(images), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(images)))
        pixels = moved(images.load(index), device)
        parts.append(encode(backbone, plain_view(pixels, image_size)).float())
    features = torch.cat(parts)
    if not features.isfinite().all():
        raise ValueError("the features are not finite: these weights have diverged")
    return features, torch.from_numpy(images.labels).to(device)
