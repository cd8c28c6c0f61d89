"""Resizing and blur of views too large for the dense matrices of `image_ops`.

A matrix takes as many products a pixel as the image is wide, a filter as many as its kernel: for
photographs and views of 224 pixels the crop here is seven times and the blur twice as fast on a
CPU. Small views are faster in a few calls for the whole batch, up to about `LARGEST_DENSE`. Both
agree up to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stabkit.train.data.image_ops import Images, blur_kernel

LARGEST_DENSE = 96
"""Pixels along a side of a view, however large the image that it is cut from."""


def crop_resize(images: Images, box: NDArray[np.int64], size: int) -> Tensor:
    """As `image_ops.crop_resize`, of uint8 images of any sizes; ``box`` [B, 4] is on the host."""
    views = images[0].new_empty(len(images), 3, size, size, dtype=torch.float32)
    for view, image, (top, left, height, width) in zip(views, images, box.tolist(), strict=True):
        # Only what is in the box is converted, a small part of many an image.
        cut = image[:, top : top + height, left : left + width].to(torch.float32).div_(255.0)
        view.copy_(_resized(cut[None], size, size)[0])
    return views


def resize_and_center_crop(images: Tensor, shorter: int, size: int) -> Tensor:
    """As `image_ops.resize_and_center_crop`."""
    height, width = (int(shorter * side / min(images.shape[2:])) for side in images.shape[2:])
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    whole = _resized(images, height, width)
    return whole[:, :, top : top + size, left : left + size].contiguous()


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """As `image_ops.gaussian_blur`: one multiply-add of the whole batch for each tap and axis.

    A depthwise convolution with a group for each plane is five times slower on one image.
    """
    kernel = blur_kernel(sigma, radius)[:, :, None, None, None].unbind(dim=1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return _filtered(_filtered(padded, kernel, 2), kernel, 3)


def _filtered(images: Tensor, kernel: tuple[Tensor, ...], dim: int) -> Tensor:
    size = images.shape[dim] - len(kernel) + 1
    total = images.narrow(dim, 0, size) * kernel[0]
    for tap, weight in enumerate(kernel[1:], start=1):
        total.addcmul_(images.narrow(dim, tap, size), weight)
    return total
