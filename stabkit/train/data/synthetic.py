"""Draw images of ten classes of texture, each a function of (class, image number) alone.

Every image has the same two-color palette and exactly the same histogram, because pixel values are
replaced by their ranks. No statistic of color or contrast tells two images apart, so only spatial
structure is left to learn. Classes differ by structure, never by scale or handedness, since random
crops and flips change those.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import ImageSet
from stabkit.train.randomness import uniforms

Field = NDArray[Any]  # float32
Texture = Callable[[Field, Field, NDArray[np.int64]], Field]

# A constant: the seed of a run must not change its images, or runs would not compare.
_DATA_SEED = 0x5AB1E
# Image numbers of the held-out split start here, a multiple of the number of classes.
_HELDOUT_START = 10**9
_MIN_SIZE = 8
_CHUNK_PIXELS = 2**16  # pixels worked on at once: they fit a processor cache
_TAU = 2 * np.pi

# Lengths are in units of 1/32 of the image side: at 32 pixels one unit is one pixel. The strongest
# blur of a view, sigma = 2 pixels, leaves exp(-2 (pi sigma / period)^2) of a wave: 4% at period 5
# and 45% at 10. A crop enlarges, so more is left after it. Much longer periods would not fit into a
# small crop.
_SIDE = 32
_PERIODS = (5.0, 10.0)
_SHIFT = 16.0  # range of a texture's origin
_TILT = 24 / 360  # range of the orientation within a class, in turns
# A bend and a shading much coarser than any texture, and noise of single pixels. They make nearest
# neighbors of raw pixels poor, but leave the middle frequencies, where a network can learn to look.
_COARSE, _BEND, _SHADE, _NOISE = 24.0, 1.0, 0.9, 1.2

_DARK, _BRIGHT = np.array([20, 50, 130]), np.array([255, 190, 90])
_POINTS = 16  # Voronoi points repeat after this many cells, more than an image shows


def _draws(index: NDArray[np.int64], stream: int, count: int) -> Field:
    """Return uniform [0, 1) numbers [B, count]; row i depends on `index[i]` alone."""
    return uniforms(_DATA_SEED, 0, index, stream, count).astype(np.float32)


def _waves(x: Field, y: Field, index: NDArray[np.int64], stream: int, count: int) -> Field:
    """Return smooth noise [B, H, W] of wavelength about 1 and unit variance.

    It is the sum of `count` plane waves of random direction, frequency and phase.
    """
    total = np.zeros_like(x)
    draws = _draws(index, stream, 3 * count).reshape(len(index), count, 3, 1, 1)
    for wave in range(count):
        turn, stretch, phase = draws[:, wave].swapaxes(0, 1)
        frequency = _TAU * (0.75 + 0.5 * stretch)
        along = np.cos(_TAU * turn) * x + np.sin(_TAU * turn) * y
        total += np.cos(frequency * along + _TAU * phase)
    total *= (2 / count) ** 0.5  # a cosine has variance 1/2
    return total


def _stripes(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return np.cos(_TAU * y)


def _checkerboard(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return np.sin(_TAU / 2 * 1.4 * x) * np.sin(_TAU / 2 * 1.4 * y)


def _rings(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    rings: Field = np.cos(_TAU * np.hypot(x, y))
    return rings


def _rays(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    arms = np.floor(5 + 5 * _draws(index, 20, 1))[:, :, None]
    rays: Field = np.cos(arms * np.arctan2(y, x))
    return rays


def _dots(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    """Sum three plane waves 60 degrees apart: bumps on a hexagonal lattice."""
    half, root = 0.5 * x, 0.75**0.5 * y
    dots: Field = np.cos(_TAU * x) + np.cos(_TAU * (half + root)) + np.cos(_TAU * (half - root))
    return dots


def _blobs(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return _waves(x, y, index, 30, 16)


def _cells(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    """Return the distance to the edge of Voronoi cells of a jittered lattice.

    This is F2 - F1 of Worley 1996. Each lattice cell holds one point; the 3 x 3 cells around a
    pixel are searched.
    """
    x, y = x / 1.4, y / 1.4
    column, row = np.floor(x), np.floor(y)
    nearest, second = np.full_like(x, np.inf), np.full_like(x, np.inf)
    points = _draws(index, 40, 2 * _POINTS**2).reshape(len(index), _POINTS, _POINTS, 2)
    image = np.arange(len(index))[:, None, None]
    for shift in range(9):
        i, j = column + shift % 3 - 1, row + shift // 3 - 1
        point = points[image, i.astype(np.int64) % _POINTS, j.astype(np.int64) % _POINTS]
        distance = np.hypot(x - i - point[..., 0], y - j - point[..., 1])
        # Keep the smallest and the second smallest distance seen so far.
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    return second - nearest


def _zigzag(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    fold = np.abs(x / 1.6 % 1 - 0.5)
    return np.cos(_TAU * (y + 2.2 * fold))


# For each class its texture, the turn of its axes and the range around that turn, in full turns.
# The turn is drawn with either sign, since flips mirror it anyway.
_TEXTURES: dict[str, tuple[Texture, float, float]] = {
    "horizontal stripes": (_stripes, 0.0, _TILT),
    "vertical stripes": (_stripes, 0.25, _TILT),
    "diagonal stripes": (_stripes, 0.125, _TILT),
    "checkerboard": (_checkerboard, 0.0, _TILT),
    "rings": (_rings, 0.0, 1.0),
    "rays": (_rays, 0.0, 1.0),
    "dots": (_dots, 0.0, 1.0),
    "blobs": (_blobs, 0.0, 1.0),
    "cells": (_cells, 0.0, 1.0),
    "zigzag": (_zigzag, 0.0, _TILT),
}
CLASSES = tuple(_TEXTURES)


def synthetic_sets(num_train: int, num_heldout: int, size: int) -> tuple[ImageSet, ImageSet]:
    """Return the training and the held-out split, of `size` pixels a side and disjoint numbers."""
    for name, count in (("num_train", num_train), ("num_heldout", num_heldout)):
        if not 0 < count <= _HELDOUT_START:
            raise DataError(
                f"data.{name} is {count}: a synthetic set needs 1 to {_HELDOUT_START} images"
            )
    if size < _MIN_SIZE:
        raise DataError(
            f"data.image_size is {size}: textures need {_MIN_SIZE} pixels a side or more"
        )
    return _numbered(0, num_train, size), _numbered(_HELDOUT_START, num_heldout, size)


def _numbered(start: int, count: int, size: int) -> ImageSet:
    labels = synthetic_labels(np.arange(start, start + count))
    return ImageSet(
        labels, CLASSES, lambda index: torch.from_numpy(synthetic_images(start + index, size))
    )


def synthetic_labels(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each image number; classes take turns, so any range is balanced."""
    return index % len(CLASSES)


def synthetic_images(index: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return images uint8 [B, 3, size, size] of the image numbers `index` (each >= 0)."""
    images = np.empty((len(index), 3, size, size), np.uint8)
    labels = synthetic_labels(index)
    chunk = max(1, _CHUNK_PIXELS // size**2)
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            images[part] = _colored(_field(index[part], size, name))
    return images


def _field(index: NDArray[np.int64], size: int, name: str) -> Field:
    """Return the texture before ranking [B, size, size], with all that varies within its class."""
    # Stream 0 places the texture, 1 to 3 bend and shade, 4 is noise, 20 and up are the textures'.
    texture, turn, tilt = _TEXTURES[name]
    left, up, lean, mirror, scale, sign = _draws(index, 0, 6).T[:, :, None, None]
    grid = ((np.arange(size) + 0.5) / size - 0.5) * _SIDE
    grid = grid.astype(np.float32)
    # Pixel centers in units, with the origin in the middle of the image.
    x, y = (np.tile(axis, (len(index), 1, 1)) for axis in np.meshgrid(grid, grid))
    bend_x, bend_y, shade = (_waves(x / _COARSE, y / _COARSE, index, 1 + i, 4) for i in range(3))
    x = x + _BEND * bend_x + _SHIFT * (left - 0.5)
    y = y + _BEND * bend_y + _SHIFT * (up - 0.5)
    angle = _TAU * (turn * np.sign(mirror - 0.5) + tilt * (lean - 0.5))
    period = _PERIODS[0] * (_PERIODS[1] / _PERIODS[0]) ** scale
    cos, sin = np.cos(angle) / period, np.sin(angle) / period
    drawn = texture(cos * x - sin * y, sin * x + cos * y, index)
    # Unit variance, so that shading and noise weigh the same against every texture.
    drawn = (drawn - drawn.mean((1, 2), keepdims=True)) / drawn.std((1, 2), keepdims=True)
    noise = _draws(index, 4, size * size).reshape(drawn.shape) - 0.5
    field: Field = np.sign(sign - 0.5) * drawn + _SHADE * shade + _NOISE * noise
    return field


def _colored(field: Field) -> NDArray[np.uint8]:
    """Replace values by their ranks, spread evenly from one palette color to the other."""
    count, height, width = field.shape
    order = _ranked(field.reshape(count, -1))
    share = (np.arange(height * width) + 0.5) / (height * width)
    palette = np.rint(_DARK[:, None] + (_BRIGHT - _DARK)[:, None] * share).astype(np.uint8)
    images = np.empty((count, 3, height * width), np.uint8)
    np.put_along_axis(images, order[:, None, :], palette[None], axis=2)
    return images.reshape(count, 3, height, width)


def _ranked(values: Field) -> NDArray[np.int64]:
    """Return `argsort(values, axis=1, kind="stable")` of finite float32, in a quarter of the time.

    Value and position are sorted as one integer. The bits of positive floats, read as integers,
    have the order of the floats; those of negative floats have it once all bits but the sign are
    flipped.
    """
    bits = (values + np.float32(0)).view(np.int32)  # -0 becomes 0
    keys = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)
    width = values.shape[1].bit_length()
    keys = keys << width | np.arange(values.shape[1])
    keys.sort(axis=1)
    ranked: NDArray[np.int64] = keys & (1 << width) - 1
    return ranked
