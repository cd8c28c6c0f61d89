"""Draw the parameters of the two augmented views of MoCo v3.

Every number is a function of (seed, epoch, sample, view) alone, drawn on the host. Order and rates
follow MoCo v3 (arXiv 2104.02057) with BYOL's asymmetric pair of augmentations (arXiv 2006.07733,
table 6).
"""

from dataclasses import dataclass
from math import ceil, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stabkit.train.randomness import uniforms

_RATIO = (3.0 / 4.0, 4.0 / 3.0)  # width / height of a crop
_TRIES = 10  # draws of a crop before the fallback, as in torchvision's RandomResizedCrop
_JITTER_PROBABILITY = 0.8
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_GRAY_PROBABILITY = 0.2
_BLUR_PROBABILITY = {1: 1.0, 2: 0.1}
_SOLARIZE_PROBABILITY = {1: 0.0, 2: 0.2}
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
    blur_sigma: NDArray[np.float64]  # pixels of the view; 0 means no blur
    solarize: NDArray[np.bool_]
    flip: NDArray[np.bool_]
    blur_radius: int  # pixels; set by the widest blur allowed, so it is the same for every batch


def sample_both_views(
    seed: int,
    epoch: int,
    sample: NDArray[np.int64],
    sizes: NDArray[np.int64],
    min_scale: float = 0.08,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> tuple[ViewParams, ViewParams]:
    """Draw view 1 and view 2; arguments as in `sample_view_params`."""
    return (
        sample_view_params(seed, epoch, sample, 1, sizes, min_scale, blur_sigma),
        sample_view_params(seed, epoch, sample, 2, sizes, min_scale, blur_sigma),
    )


def sample_view_params(
    seed: int,
    epoch: int,
    sample: NDArray[np.int64],
    view: Literal[1, 2],
    sizes: NDArray[np.int64],
    min_scale: float = 0.08,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> ViewParams:
    """Draw view 1 or 2 of the data-set indices `sample` [B], images of `sizes` [B, 2] (H, W).

    `min_scale` is the smallest crop as a fraction of the image's area, `blur_sigma` the range of
    the blur in pixels of the view. Raises ValueError for a value out of range and for a shape that
    does not match.
    """
    _check_settings(view, min_scale, blur_sigma)
    if sizes.shape != (len(sample), 2) or (sizes < 1).any():
        raise ValueError(
            f"sizes must hold a height and width of 1 or more for each of {len(sample)} samples, "
            f"got shape {sizes.shape} and smallest value {sizes.min(initial=1)}"
        )
    # Every sample takes all its numbers, used or not, so that no draw moves another:
    # 0-9 areas, 10-19 ratios, 20-21 corner, 22-25 order of the jitter, 26-35 as named below.
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
        # Three deviations hold 99.7 % of a Gaussian.
        blur_radius=ceil(3.0 * high),
    )


def _random_boxes(
    area: NDArray[np.float64],
    ratio: NDArray[np.float64],
    top: NDArray[np.float64],
    left: NDArray[np.float64],
    sizes: NDArray[np.int64],
    min_scale: float,
) -> NDArray[np.int64]:
    """Return boxes [B, 4] of RandomResizedCrop from uniforms [tries, B] (twice) and [B] (twice).

    The area is uniform and the aspect ratio log-uniform, as in torchvision. All tries are computed
    at once, and each sample keeps its first try that fits into its image.
    """
    image = sizes.T
    target = image.prod(axis=0) * (min_scale + (1.0 - min_scale) * area)
    aspect = np.exp(log(_RATIO[0]) + (log(_RATIO[1]) - log(_RATIO[0])) * ratio)
    tries = np.rint(np.sqrt([target / aspect, target * aspect])).astype(np.int64)  # [2, tries, B]
    fits = ((tries > 0) & (tries <= image[:, None])).all(axis=0)
    # argmax gives the first try that fits. It gives 0 when none fits; the fallback replaces that.
    chosen = tries[:, fits.argmax(axis=0), np.arange(image.shape[1])]
    corner = np.floor([top, left] * (image - chosen + 1)).astype(np.int64)
    fallback = _largest_boxes(image)
    success = fits.any(axis=0)
    extent = np.where(success, chosen, fallback)
    return np.concatenate([np.where(success, corner, (image - fallback) // 2), extent]).T


def _largest_boxes(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return height and width [2, B] of the largest box whose ratio is allowed."""
    height, width = image
    shorter_height = np.rint(width / _RATIO[0]).astype(np.int64)
    shorter_width = np.rint(height * _RATIO[1]).astype(np.int64)
    return np.minimum(image, [shorter_height, shorter_width])


def _check_settings(view: int, min_scale: float, blur_sigma: tuple[float, float]) -> None:
    if view not in _BLUR_PROBABILITY:
        raise ValueError(f"view must be 1 or 2, got {view!r}")
    if not 0.0 < min_scale <= 1.0:
        raise ValueError(f"min_scale must be above 0 and at most 1, got {min_scale}")
    if not 0.0 < blur_sigma[0] <= blur_sigma[1] < float("inf"):
        raise ValueError(f"blur_sigma must be (low, high) with 0 < low <= high, got {blur_sigma}")
