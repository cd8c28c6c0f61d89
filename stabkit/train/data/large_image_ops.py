"""Resize and blur views that are too large for the dense matrices of `image_ops`.

A dense matrix takes as many products a pixel as the image is wide, a filter only as many as its
kernel has taps. For photographs and views of 224 pixels on a CPU, the crop here is seven times as
fast and the blur twice. Views up to about `LARGEST_DENSE` pixels are faster by the dense matrices,
which take a few calls for the whole batch. Both give the same views up to rounding.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stabkit.train.data.image_ops import Images, blur_kernel

LARGEST_DENSE = 96
"""Largest side of a view, in pixels, that is made by dense matrices; the image may be larger."""


def crop_resize(images: Images, box: NDArray[np.int64], size: int) -> Tensor:
    """Do what `image_ops.crop_resize` does, on uint8 images of any sizes.

    `box` [B, 4] is on the host.
    """
    views = images[0].new_empty(len(images), 3, size, size, dtype=torch.float32)
    for view, image, (top, left, height, width) in zip(views, images, box.tolist(), strict=True):
        # Convert only the pixels in the box, often a small part of the image.
        cut = image[:, top : top + height, left : left + width].to(torch.float32).div_(255.0)
        view.copy_(_resized(cut[None], size, size)[0])
    return views


def resize_and_center_crop(images: Tensor, shorter: int, size: int) -> Tensor:
    """Do what `image_ops.resize_and_center_crop` does."""
    height, width = (int(shorter * side / min(images.shape[2:])) for side in images.shape[2:])
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    whole = _resized(images, height, width)
    return whole[:, :, top : top + size, left : left + size].contiguous()


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Do what `image_ops.gaussian_blur` does, by one multiply-add for each tap and axis.

    A multiply-add takes the whole batch. A depthwise convolution with a group for each plane is
    five times slower on one image.
    """
    # A Gaussian is separable: filter along the height, then along the width.
    kernel = blur_kernel(sigma, radius)[:, :, None, None, None].unbind(dim=1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return _filtered(_filtered(padded, kernel, 2), kernel, 3)


def _filtered(images: Tensor, kernel: tuple[Tensor, ...], dim: int) -> Tensor:
    """Correlate along `dim` with taps [B, 1, 1, 1]; the result is shorter by the kernel less 1."""
    size = images.shape[dim] - len(kernel) + 1
    total = images.narrow(dim, 0, size) * kernel[0]
    for tap, weight in enumerate(kernel[1:], start=1):
        total.addcmul_(images.narrow(dim, tap, size), weight)
    return total
