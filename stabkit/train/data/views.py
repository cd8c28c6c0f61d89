"""The two augmented views of MoCo v3 and the plain view used for evaluation.

Parameters are drawn on the host, as a function of (seed, epoch, sample, view) alone, and applied on
the images' device to the whole batch. Order and rates: MoCo v3 (arXiv 2104.02057) with BYOL's
asymmetric pair of augmentations (arXiv 2006.07733, table 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.train.data import image_ops
from stabkit.train.data import large_image_ops as large_ops
from stabkit.train.data.image_ops import Images, image_sizes, resize_by_size
from stabkit.train.data.large_image_ops import LARGEST_DENSE
from stabkit.train.randomness import uniforms

Blur = Callable[[Tensor, Tensor, int], Tensor]

_RATIO = (3.0 / 4.0, 4.0 / 3.0)  # width / height of a crop
_TRIES = 10
_JITTER_PROBABILITY = 0.8
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_GRAY_PROBABILITY = 0.2
_BLUR_PROBABILITY = {1: 1.0, 2: 0.1}
_SOLARIZE_PROBABILITY = {1: 0.0, 2: 0.2}
_SOLARIZE_THRESHOLD = 128.0 / 255.0
_FLIP_PROBABILITY = 0.5


@dataclass(frozen=True)
class ViewParams:
    """Parameters of one view of B samples; numpy arrays of shape [B] unless noted."""

    box: NDArray[np.int64]  # [B, 4]: top, left, height, width in pixels
    jitter: NDArray[np.bool_]
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    saturation: NDArray[np.float64]
    hue: NDArray[np.float64]  # turns
    order: NDArray[np.int64]  # [B, 4]: 0 brightness, 1 contrast, 2 saturation, 3 hue
    gray: NDArray[np.bool_]
    blur_sigma: NDArray[np.float64]  # pixels of the view; 0 where not blurred
    solarize: NDArray[np.bool_]
    flip: NDArray[np.bool_]
    blur_radius: int  # pixels; from the widest blur allowed, so the batch has no say in it


def sample_view_params(
    seed: int,
    epoch: int,
    sample: NDArray[np.int64],
    view: Literal[1, 2],
    sizes: NDArray[np.int64],
    min_scale: float = 0.08,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> ViewParams:
    """Draw view 1 or 2 of the data-set indices ``sample`` [B], images of ``sizes`` [B, 2] (H, W).

    ``min_scale`` is the smallest crop as a fraction of the image's area, ``blur_sigma`` the range
    of the blur in pixels of the view. Raises ValueError on a value out of range or a shape that
    does not match.
    """
    _check_settings(view, min_scale, blur_sigma)
    if sizes.shape != (len(sample), 2) or (sizes < 1).any():
        raise ValueError(
            f"sizes must hold a height and width of 1 or more for each of {len(sample)} samples, "
            f"got shape {sizes.shape} and smallest value {sizes.min(initial=1)}"
        )
    u = uniforms(seed, epoch, sample, view, 2 * _TRIES + 16).T
    jitter, brightness, contrast, saturation, hue, gray, blur, sigma, solarize, flip = u[26:]
    low, high = blur_sigma
    return ViewParams(
        box=_random_boxes(u[:_TRIES], u[_TRIES : 2 * _TRIES], u[20], u[21], sizes, min_scale),
        jitter=jitter < _JITTER_PROBABILITY,
        brightness=1.0 + _BRIGHTNESS * (2.0 * brightness - 1.0),
        contrast=1.0 + _CONTRAST * (2.0 * contrast - 1.0),
        saturation=1.0 + _SATURATION * (2.0 * saturation - 1.0),
        hue=_HUE * (2.0 * hue - 1.0),
        # Sorting independent uniforms makes each of the 24 orders equally likely.
        order=np.argsort(u[22:26].T, axis=1, kind="stable").astype(np.int64, copy=False),
        gray=gray < _GRAY_PROBABILITY,
        blur_sigma=(blur < _BLUR_PROBABILITY[view]) * (low + (high - low) * sigma),
        solarize=solarize < _SOLARIZE_PROBABILITY[view],
        flip=flip < _FLIP_PROBABILITY,
        blur_radius=ceil(3.0 * high),
    )


def two_views(
    images: Images,
    seed: int,
    epoch: int,
    sample: NDArray[np.int64],
    image_size: int,
    min_scale: float = 0.08,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> tuple[Tensor, Tensor]:
    """Both augmented views of a batch, each float32 [B, 3, image_size, image_size], normalised."""
    sizes = image_sizes(images)
    first = sample_view_params(seed, epoch, sample, 1, sizes, min_scale, blur_sigma)
    second = sample_view_params(seed, epoch, sample, 2, sizes, min_scale, blur_sigma)
    return apply_view(images, first, image_size), apply_view(images, second, image_size)


@torch.no_grad()
def apply_view(images: Images, params: ViewParams, image_size: int) -> Tensor:
    """Crop, jitter, grey, blur, solarise, flip and normalise: float32 [B, 3, S, S].

    Runs in float32 whatever autocast says. The blur is cut at ``params.blur_radius`` or, on images
    too small to reflect that far, at ``image_size - 1``.
    """
    _check_boxes(params.box, image_sizes(images))
    with torch.autocast(images[0].device.type, enabled=False):
        if image_size <= LARGEST_DENSE:
            box = _to(images[0], params.box)

            def crop(batch: Tensor, rows: Tensor) -> Tensor:
                return image_ops.crop_resize(batch, box.index_select(0, rows), image_size)

            return _after_crop(resize_by_size(images, crop), params, image_ops.gaussian_blur)
        views = images[0].new_empty(len(images), 3, image_size, image_size, dtype=torch.float32)
        # On a CPU a few at a time, which stay in its cache from crop to normalise.
        step = 4 if views.device.type == "cpu" else len(images)
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            part = _rows(params, rows)
            cropped = large_ops.crop_resize(images[rows], part.box, image_size)
            views[rows] = _after_crop(cropped, part, large_ops.gaussian_blur)
        return views


def _after_crop(views: Tensor, params: ViewParams, gaussian_blur: Blur) -> Tensor:
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


def _rows(params: ViewParams, rows: slice) -> ViewParams:
    arrays: dict[str, Any] = {
        name: value[rows] for name, value in vars(params).items() if isinstance(value, np.ndarray)
    }
    return replace(params, **arrays)


@torch.no_grad()
def plain_view(images: Images, image_size: int) -> Tensor:
    """The view without chance: float32 [B, 3, image_size, image_size], normalised.

    Images of the wanted size are only normalised. Others are resized so that the shorter side is
    ``image_size * 256 / 224`` pixels and cut to the central square, as is usual on ImageNet.
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


def _random_boxes(
    area: NDArray[np.float64],
    ratio: NDArray[np.float64],
    top: NDArray[np.float64],
    left: NDArray[np.float64],
    sizes: NDArray[np.int64],
    min_scale: float,
) -> NDArray[np.int64]:
    """Boxes [B, 4] of RandomResizedCrop from uniforms [tries, B], [tries, B], [B], [B]."""
    image = sizes.T
    target = image.prod(axis=0) * (min_scale + (1.0 - min_scale) * area)
    aspect = np.exp(log(_RATIO[0]) + (log(_RATIO[1]) - log(_RATIO[0])) * ratio)
    tries = np.rint(np.sqrt([target / aspect, target * aspect])).astype(np.int64)  # [2, tries, B]
    fits = ((tries > 0) & (tries <= image[:, None])).all(axis=0)
    # The first try that fits; where none does argmax gives 0 and the fallback replaces it.
    chosen = tries[:, fits.argmax(axis=0), np.arange(image.shape[1])]
    corner = np.floor([top, left] * (image - chosen + 1)).astype(np.int64)
    fallback = _largest_boxes(image)
    success = fits.any(axis=0)
    extent = np.where(success, chosen, fallback)
    return np.concatenate([np.where(success, corner, (image - fallback) // 2), extent]).T


def _largest_boxes(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Height and width [2, B] of the largest box whose ratio is allowed."""
    height, width = image
    shorter_height = np.rint(width / _RATIO[0]).astype(np.int64)
    shorter_width = np.rint(height * _RATIO[1]).astype(np.int64)
    return np.minimum(image, [shorter_height, shorter_width])


def _jitter(views: Tensor, params: ViewParams) -> Tensor:
    operations = (
        (image_ops.adjust_brightness, params.brightness),
        (image_ops.adjust_contrast, params.contrast),
        (image_ops.adjust_saturation, params.saturation),
        (image_ops.adjust_hue, params.hue),
    )
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
    """``views`` with the samples in ``mask`` replaced by ``operation`` of them and their values.

    May write into ``views``.
    """
    rows = np.flatnonzero(mask)
    if not rows.size:
        return views
    arguments = [_to(views, value[rows].astype(np.float32)) for value in values]
    if rows.size == len(views):
        return operation(views, *arguments)
    index = _to(views, rows)
    changed = operation(views.index_select(0, index), *arguments)
    return views.index_copy_(0, index, changed)


def _to(images: Tensor, array: NDArray[np.int64] | NDArray[np.float32]) -> Tensor:
    # Without non_blocking the host would wait for the device at every small array.
    return torch.from_numpy(array).to(images.device, non_blocking=True)


def _check_settings(view: int, min_scale: float, blur_sigma: tuple[float, float]) -> None:
    if view not in _BLUR_PROBABILITY:
        raise ValueError(f"view must be 1 or 2, got {view!r}")
    if not 0.0 < min_scale <= 1.0:
        raise ValueError(f"min_scale must be above 0 and at most 1, got {min_scale}")
    if not 0.0 < blur_sigma[0] <= blur_sigma[1] < float("inf"):
        raise ValueError(f"blur_sigma must be (low, high) with 0 < low <= high, got {blur_sigma}")


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
