"""One split of labelled images, and where its pixels live."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stabkit.train.data.pixels import check_size, rgb_pixels

Images = Tensor | list[Tensor]

HELD_BYTES = 2**30
_CHUNK = 1024
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a set that is decoded on every load knows of its images without decoding any.

    ``sizes`` gives heights and widths [B, 2] of those at checked indices, ``stamp`` a text that
    changes with the content or the order of the images.
    """

    sizes: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    stamp: Callable[[], str]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split: ``labels`` int64 [N] index ``classes``; ``read`` fetches checked indices."""

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    read: Callable[[NDArray[np.int64]], Images]
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: NDArray[np.int64]) -> Images:
        """Images at ``index`` [B]: uint8 [B, 3, H, W] if they share one size, else B of [3, h, w].

        A set whose images all have one size therefore always gives one tensor. Raises ValueError
        for an index outside 0..N-1, or for an image that cannot be decoded.
        """
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            raise ValueError(
                f"image index {outside[0]} is outside this set: it has {len(self)} images, "
                f"numbered 0 to {len(self) - 1}"
            )
        return self.read(index)


def encoded_set(
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    opened: Callable[[int], BinaryIO],
    where: Callable[[int], str],
    stamp: Callable[[], str],
) -> ImageSet:
    """A set decoded on every load; ``opened`` gives the file of image i, ``where`` its place.

    ``stamp`` as in `Encoded`.
    """

    def of_image(act: Callable[[Image.Image], T], i: int) -> T:
        try:
            with opened(i) as file, Image.open(file) as image:
                check_size(image)
                return act(image)
        # Not only OSError: Pillow's decoders let many kinds of error through on broken bytes.
        except Exception as error:
            raise ValueError(
                f"{where(i)}: not an image that Pillow can decode ({error}); replace or remove it"
            ) from error

    def pixels(image: Image.Image) -> Tensor:
        return torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1)

    def read(index: NDArray[np.int64]) -> Images:
        return stacked(list(_pool().map(functools.partial(of_image, pixels), index.tolist())))

    def sizes(index: NDArray[np.int64]) -> NDArray[np.int64]:
        size = functools.partial(of_image, lambda image: (image.height, image.width))
        return np.array(list(_pool().map(size, index.tolist())), np.int64).reshape(-1, 2)

    return ImageSet(labels, classes, read, Encoded(sizes, stamp))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads, since Pillow decodes without the interpreter's lock."""
    return ThreadPoolExecutor(min(16, _CORES), "decode")


# A forked process has the pool and none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def file_stamp(root: Path, files: Sequence[Path]) -> str:
    """A text that changes when a file below ``root`` is replaced, renamed, added or removed."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        name = os.fsencode(file.relative_to(root))
        digest.update(b"%d %d %d %s" % (len(name), stat.st_size, stat.st_mtime_ns, name))
    return digest.hexdigest()


def stacked(images: list[Tensor]) -> Images:
    """Images [3, h, w] as `ImageSet.load` gives them."""
    if images and all(image.shape == images[0].shape for image in images):
        return torch.stack(images)
    return [image.contiguous() for image in images]


def moved(images: Images, device: torch.device) -> Images:
    """The same images on `device`."""
    if isinstance(images, Tensor):
        return images.to(device)
    return [image.to(device) for image in images]


def from_array(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> ImageSet:
    """A set held in memory: ``images`` uint8 [N, 3, H, W]."""
    pixels = torch.from_numpy(images)
    return ImageSet(labels, classes, lambda index: pixels[torch.from_numpy(index)])


def taken(images: ImageSet, index: NDArray[np.int64]) -> ImageSet:
    """The subset at ``index``, in that order; nothing is read."""
    encoded = images.encoded
    if encoded is not None:
        sizes, stamp = encoded.sizes, encoded.stamp
        order = hashlib.sha256(index.tobytes()).hexdigest()
        encoded = Encoded(lambda inner: sizes(index[inner]), lambda: f"{stamp()} {order}")
    return ImageSet(
        images.labels[index], images.classes, lambda inner: images.read(index[inner]), encoded
    )


def held(images: ImageSet, limit: int = HELD_BYTES) -> ImageSet:
    """The same set with its pixels in memory, if they have one size and fit ``limit`` bytes.

    Otherwise ``images`` itself, which reads on every load. The first image decides whether to try,
    so that a large set costs one read and not a scan.
    """
    first = images.read(np.zeros(1, np.int64))[0]
    if len(images) * first.numel() > limit:
        return images
    pixels = np.empty((len(images), *first.shape), np.uint8)
    for start in range(0, len(images), _CHUNK):
        stop = min(start + _CHUNK, len(images))
        part = images.read(np.arange(start, stop))
        if isinstance(part, list) or part.shape[1:] != first.shape:
            return images
        pixels[start:stop] = part.numpy()
    return from_array(pixels, images.labels, images.classes)


def kept(images: ImageSet, shape: tuple[int, int, int], limit: int = HELD_BYTES) -> ImageSet:
    """The same set of images of one `shape`, each read once: when it is first asked for.

    For images that cannot fail to be read; others are looked at before a training starts, by
    `held`. `images` itself where they do not fit ``limit`` bytes.
    """
    if len(images) * math.prod(shape) > limit:
        return images
    pixels = torch.empty((len(images), *shape), dtype=torch.uint8)
    is_there = np.zeros(len(images), np.bool_)

    def read(index: NDArray[np.int64]) -> Tensor:
        missing = np.unique(index[~is_there[index]])
        if len(missing):
            new = images.read(missing)
            assert isinstance(new, Tensor)
            pixels[torch.from_numpy(missing)] = new
            is_there[missing] = True
        return pixels[torch.from_numpy(index)]

    return ImageSet(images.labels, images.classes, read)
