"""Ten classes of texture, drawn from (class, image number) alone.

Every image has the same two-colour palette and, by construction, the very same histogram: pixel
values are replaced by their ranks. So no colour or contrast statistic tells two images apart, and
only spatial structure is left to learn. Classes differ by structure, never by scale or handedness,
since random crops and flips change those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.train.image_set import ImageSet
from stabkit.train.randomness import uniforms

Field = NDArray[Any]  # float32 [B, H, W], or what broadcasts to it
Texture = Callable[[Field, Field, NDArray[np.int64]], Field]

# Fixed in code: the seed of a run must not change its images, or runs would not compare.
_DATA_SEED = 0x5AB1E
_DARK, _BRIGHT = np.array([20, 50, 130]), np.array([255, 190, 90])
# The unit of length: textures are laid out on a square of 32 units at every image size.
_EXTENT = 32.0
_LATTICE = 16
# Image numbers of the held-out split start here: a multiple of the number of classes.
_HELDOUT_START = 10**9
_CHUNK_PIXELS = 2**21
_PERIODS = (np.float32(5), np.float32(10))
_COARSE = np.float32(24)
_SHIFT, _BEND, _TILT = np.float32(16), np.float32(1), np.float32(24 / 360)
_SHADE, _NOISE = np.float32(1), np.float32(1.5)
_HALF = np.float32(0.5)
_TAU = np.float32(2 * np.pi)


def _draws(index: NDArray[np.int64], stream: int, count: int) -> Field:
    """Uniform [0, 1) numbers [B, count]; row i depends on ``index[i]`` alone."""
    return uniforms(_DATA_SEED, 0, index, stream, count).astype(np.float32)


def _waves(x: Field, y: Field, index: NDArray[np.int64], stream: int, count: int) -> Field:
    """Smooth noise of wavelength about 1 and unit variance: ``count`` plane waves [B, H, W]."""
    total = np.zeros_like(x)
    draws = _draws(index, stream, 3 * count).reshape(len(index), count, 3, 1, 1)
    for wave in range(count):
        turn, stretch, phase = draws[:, wave].swapaxes(0, 1)
        frequency = _TAU * (np.float32(0.75) + np.float32(0.5) * stretch)
        along = np.cos(_TAU * turn) * x + np.sin(_TAU * turn) * y
        total += np.cos(frequency * along + _TAU * phase)
    return total * np.float32((2 / count) ** 0.5)


def _stripes(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return np.cos(_TAU * y)


def _checkerboard(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return np.sin(_TAU / 2 * 1.4 * x) * np.sin(_TAU / 2 * 1.4 * y)


def _rings(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return np.cos(_TAU * np.hypot(x, y))


def _rays(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    arms = np.floor(5 + 5 * _draws(index, 20, 1))[:, :, None]
    return np.cos(arms * np.arctan2(y, x))


def _dots(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    """Three plane waves 60 degrees apart: bumps on a hexagonal lattice."""
    half, root = np.float32(0.5), np.float32(0.75**0.5)
    return (
        np.cos(_TAU * x)
        + np.cos(_TAU * (half * x + root * y))
        + np.cos(_TAU * (half * x - root * y))
    )


def _blobs(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    return _waves(x, y, index, 30, 16)


def _cells(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    """Distance to the edge of the Voronoi cells of a jittered lattice (Worley 1996: F2 - F1)."""
    x, y = x / np.float32(1.4), y / np.float32(1.4)
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    nearest, second = np.full_like(x, np.inf), np.full_like(x, np.inf)
    points = _draws(index, 40, 2 * _LATTICE**2).reshape(len(index), _LATTICE, _LATTICE, 2)
    image = np.arange(len(index))[:, None, None]
    for shift in range(9):
        i, j = column + shift % 3 - 1, row + shift // 3 - 1
        point = points[image, i % _LATTICE, j % _LATTICE]
        distance = np.hypot(x - i - point[..., 0], y - j - point[..., 1]).astype(np.float32)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    return second - nearest


def _zigzag(x: Field, y: Field, index: NDArray[np.int64]) -> Field:
    fold = np.abs(x / np.float32(1.6) % 1 - np.float32(0.5))
    return np.cos(_TAU * (y + np.float32(2.2) * fold))


# Class -> its texture, the turn of its axes (in full turns) and whether that turn is free.
_TEXTURES: dict[str, tuple[Texture, float, bool]] = {
    "horizontal stripes": (_stripes, 0.0, False),
    "vertical stripes": (_stripes, 0.25, False),
    "diagonal stripes": (_stripes, 0.125, False),
    "checkerboard": (_checkerboard, 0.0, False),
    "rings": (_rings, 0.0, True),
    "rays": (_rays, 0.0, True),
    "dots": (_dots, 0.0, True),
    "blobs": (_blobs, 0.0, True),
    "cells": (_cells, 0.0, True),
    "zigzag": (_zigzag, 0.0, False),
}
CLASSES = tuple(_TEXTURES)


def synthetic_sets(num_train: int, num_heldout: int, size: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out split of ``size`` pixels a side, from disjoint image numbers."""
    for name, count in (("num_train", num_train), ("num_heldout", num_heldout)):
        if not 0 < count <= _HELDOUT_START:
            raise ValueError(
                f"data.{name} is {count}: a synthetic set needs 1 to {_HELDOUT_START} images"
            )
    return _numbered(0, num_train, size), _numbered(_HELDOUT_START, num_heldout, size)


def _numbered(start: int, count: int, size: int) -> ImageSet:
    labels = synthetic_labels(np.arange(start, start + count))
    return ImageSet(
        labels, CLASSES, lambda index: torch.from_numpy(synthetic_images(start + index, size))
    )


def synthetic_labels(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of each image number: they take turns, so any range is balanced to within one."""
    return index % len(CLASSES)


def synthetic_images(index: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Images uint8 [B, 3, size, size] of the image numbers ``index`` (each >= 0)."""
    images = np.empty((len(index), 3, size, size), np.uint8)
    labels = synthetic_labels(index)
    chunk = max(1, _CHUNK_PIXELS // size**2)
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            images[part] = _coloured(_field(index[part], size, name))
    return images


def _field(index: NDArray[np.int64], size: int, name: str) -> Field:
    """The texture before ranking [B, size, size], with everything that varies within its class."""
    texture, turn, free = _TEXTURES[name]
    shift_x, shift_y, tilt, mirror, scale, sign = _draws(index, 0, 6).T[:, :, None, None]
    grid = ((np.arange(size) + 0.5) * (_EXTENT / size) - _EXTENT / 2).astype(np.float32)
    x = np.broadcast_to(grid, (len(index), size, size))
    y = x.swapaxes(1, 2)
    coarse = [_waves(x / _COARSE, y / _COARSE, index, 1 + part, 4) for part in range(3)]
    x = x + _BEND * coarse[0] + _SHIFT * (shift_x - _HALF)
    y = y + _BEND * coarse[1] + _SHIFT * (shift_y - _HALF)
    angle = turn * np.where(mirror < _HALF, -1, 1) + (1 if free else _TILT) * (tilt - _HALF)
    cos, sin = np.cos(_TAU * angle), np.sin(_TAU * angle)
    period = _PERIODS[0] * (_PERIODS[1] / _PERIODS[0]) ** scale
    drawn = texture((cos * x - sin * y) / period, (sin * x + cos * y) / period, index)
    drawn = (drawn - drawn.mean((1, 2), keepdims=True)) / drawn.std((1, 2), keepdims=True)
    noise = _draws(index, 4, size * size).reshape(drawn.shape) - _HALF
    return np.where(sign < _HALF, -drawn, drawn) + _SHADE * coarse[2] + _NOISE * noise


def _coloured(field: Field) -> NDArray[np.uint8]:
    """Replace values by their ranks, spread evenly from one palette colour to the other."""
    count, height, width = field.shape
    order = np.argsort(field.reshape(count, -1), axis=1, kind="stable")
    share = (np.arange(height * width) + 0.5) / (height * width)
    palette = np.rint(_DARK[:, None] + (_BRIGHT - _DARK)[:, None] * share).astype(np.uint8)
    images = np.empty((count, 3, height * width), np.uint8)
    np.put_along_axis(images, order[:, None, :], palette[None], axis=2)
    return images.reshape(count, 3, height, width)
