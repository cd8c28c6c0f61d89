"""Make the two augmented views of a batch, and the plain view used for evaluation.

The parameters come from `view_params`. They are applied on the device of the images, to the whole
batch at once.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.train.data import image_ops
from stabkit.train.data import large_image_ops as large_ops
from stabkit.train.data.image_ops import Images, image_sizes, resize_by_size
from stabkit.train.data.large_image_ops import LARGEST_DENSE
from stabkit.train.data.view_params import ViewParams, sample_both_views

Blur = Callable[[Tensor, Tensor, int], Tensor]

_SOLARIZE_THRESHOLD = 128.0 / 255.0
_CPU_ROWS = 4  # large views worked on at once on a CPU


def two_views(
    images: Images,
    seed: int,
    epoch: int,
    sample: NDArray[np.int64],
    image_size: int,
    min_scale: float = 0.08,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> tuple[Tensor, Tensor]:
    """Return both augmented views of a batch, each normalized float32 [B, 3, S, S]."""
    sizes = image_sizes(images)
    first, second = sample_both_views(seed, epoch, sample, sizes, min_scale, blur_sigma)
    return apply_view(images, first, image_size), apply_view(images, second, image_size)


@torch.no_grad()
def apply_view(images: Images, params: ViewParams, image_size: int) -> Tensor:
    """Crop, jitter, gray, blur, solarize, flip and normalize: float32 [B, 3, S, S].

    Runs in float32 even under autocast: half precision would make views depend on the precision of
    the training. The blur is cut at `params.blur_radius` or, on images too small to reflect that
    far, at `image_size - 1`.
    """
    _check_boxes(params.box, image_sizes(images))
    with torch.autocast(images[0].device.type, enabled=False):
        if image_size <= LARGEST_DENSE:
            return _small_views(images, params, image_size)
        return _large_views(images, params, image_size)


def _small_views(images: Images, params: ViewParams, image_size: int) -> Tensor:
    box = _to(images[0], params.box)

    def crop(batch: Tensor, rows: Tensor) -> Tensor:
        return image_ops.crop_resize(batch, box.index_select(0, rows), image_size)

    return _after_crop(resize_by_size(images, crop), params, image_ops.gaussian_blur)


def _large_views(images: Images, params: ViewParams, image_size: int) -> Tensor:
    views = images[0].new_empty(len(images), 3, image_size, image_size, dtype=torch.float32)
    # A CPU works on a few views at a time, which stay in its cache from crop to normalize.
    step = _CPU_ROWS if views.device.type == "cpu" else len(images)
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        part = _rows(params, rows)
        cropped = large_ops.crop_resize(images[rows], part.box, image_size)
        views[rows] = _after_crop(cropped, part, large_ops.gaussian_blur)
    return views


def _after_crop(views: Tensor, params: ViewParams, gaussian_blur: Blur) -> Tensor:
    """Apply all that follows the crop, in the order of the MoCo v3 code. May write into `views`."""

    def blur(batch: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_blur(batch, sigma, min(params.blur_radius, batch.shape[3] - 1))

    def solarize(batch: Tensor) -> Tensor:
        return image_ops.solarize(batch, _SOLARIZE_THRESHOLD)

    views = _jitter(views, params)
    views = _on_subset(views, params.gray, image_ops.grayscale)
    views = _on_subset(views, params.blur_sigma > 0.0, blur, params.blur_sigma)
    views = _on_subset(views, params.solarize, solarize)
    views = _on_subset(views, params.flip, image_ops.flip)
    return image_ops.normalize(views)


def _jitter(views: Tensor, params: ViewParams) -> Tensor:
    """Apply the four color operations, each sample in its own order."""
    operations = (
        (image_ops.adjust_brightness, params.brightness),
        (image_ops.adjust_contrast, params.contrast),
        (image_ops.adjust_saturation, params.saturation),
        (image_ops.adjust_hue, params.hue),
    )
    # The operations do not commute. In each of four turns every sample gets the operation that its
    # order names; the samples that share an operation are one call.
    for turn in params.order.T:
        for kind, (operation, factor) in enumerate(operations):
            mask = params.jitter & (turn == kind)
            views = _on_subset(views, mask, operation, factor)
    return views


def _on_subset(
    views: Tensor,
    mask: NDArray[np.bool_],
    operation: Callable[..., Tensor],
    *values: NDArray[np.float64],
) -> Tensor:
    """Replace the samples in `mask` by `operation` of them and their values.

    May write into `views`.
    """
    # The mask is on the host: no boolean indexing on the device, which would wait for its count.
    rows = np.flatnonzero(mask)
    if not rows.size:
        return views
    arguments = [_to(views, value[rows].astype(np.float32)) for value in values]
    if rows.size == len(views):
        return operation(views, *arguments)
    index = _to(views, rows)
    changed = operation(views.index_select(0, index), *arguments)
    return views.index_copy_(0, index, changed)


@torch.no_grad()
def plain_view(images: Images, image_size: int) -> Tensor:
    """Return the view without augmentation: normalized float32 [B, 3, image_size, image_size].

    Images of the wanted size are only normalized. Other images are resized so that the shorter side
    has `image_size * 256 / 224` pixels and cut to the central square, as is usual on ImageNet.
    """
    image_sizes(images)
    shorter = round(image_size * 256 / 224)

    def central_square(batch: Tensor, rows: Tensor) -> Tensor:
        if batch.shape[2:] == (image_size, image_size):
            return batch.contiguous()
        if image_size > LARGEST_DENSE:
            return large_ops.resize_and_center_crop(batch, shorter, image_size)
        return image_ops.resize_and_center_crop(batch, shorter, image_size)

    with torch.autocast(images[0].device.type, enabled=False):
        return image_ops.normalize(resize_by_size(images, central_square))


def _rows(params: ViewParams, rows: slice) -> ViewParams:
    arrays: dict[str, Any] = {
        name: value[rows] for name, value in vars(params).items() if isinstance(value, np.ndarray)
    }
    return replace(params, **arrays)


def _to(images: Tensor, array: NDArray[np.int64] | NDArray[np.float32]) -> Tensor:
    # Without non_blocking the host would wait for the device at every small array.
    return torch.from_numpy(array).to(images.device, non_blocking=True)


def _check_boxes(box: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    if box.shape != (len(sizes), 4):
        raise ValueError(f"params are for {len(box)} samples but there are {len(sizes)} images")
    outside = (box[:, :2] < 0) | (box[:, 2:] < 1) | (box[:, :2] + box[:, 2:] > sizes)
    if outside.any():
        row = int(np.flatnonzero(outside.any(axis=1))[0])
        raise ValueError(
            f"box[{row}] (top, left, height, width) must lie in its image of size "
            f"{sizes[row].tolist()}, got {box[row].tolist()}"
        )
