"""One split of labeled images, and where its pixels live."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.printing import counted
from stabkit.train.data.decoder import decoded, decoded_sizes
from stabkit.train.data.decoding_process import ByteRange
from stabkit.train.data.errors import DataError

Images = Tensor | list[Tensor]

MEMORY_LIMIT = 2**30  # bytes of pixels that a split may keep in memory
_CHUNK = 1024  # images read at once when a split is read whole

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a set that is decoded on every load knows of its images without decoding any.

    `sizes` gives heights and widths [B, 2] of the images at checked indices. `stamp` gives a text
    that changes with the content or the order of the images.
    """

    sizes: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    stamp: Callable[[], str]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split: `labels` int64 [N] index `classes`; `read` fetches the images at checked indices.

    `encoded` is None unless the set is decoded on every load.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    read: Callable[[NDArray[np.int64]], Images]
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: NDArray[np.int64]) -> Images:
        """Return the images at `index` [B].

        They are one uint8 tensor [B, 3, H, W] if they share one size, else a list of B tensors
        [3, h, w]. A set whose images all have one size therefore always gives one tensor.

        Raises ValueError for an index outside 0..N-1, DataError for an image that cannot be
        decoded.
        """
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            raise ValueError(
                f"image index {outside[0]} is outside this set: it has "
                f"{counted(len(self), 'image')}, numbered 0 to {len(self) - 1}"
            )
        return self.read(index)


def encoded_set(
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    source: Callable[[int], ByteRange | bytes],
    where: Callable[[int], str],
    stamp: Callable[[], str],
) -> ImageSet:
    """Return a set that is decoded on every load.

    `source` gives the encoded bytes of image i or where they are, `where` names its place in
    messages, `stamp` is that of `Encoded`.
    """

    def checked(index: NDArray[np.int64], results: Sequence[T | str]) -> list[T]:
        for i, result in zip(index.tolist(), results, strict=True):
            if isinstance(result, str):
                raise DataError(f"{where(i)}: {result}")
        return cast(list[T], results)

    def read(index: NDArray[np.int64]) -> Images:
        return stacked(checked(index, decoded([source(i) for i in index.tolist()])))

    def sizes(index: NDArray[np.int64]) -> NDArray[np.int64]:
        found = checked(index, decoded_sizes([source(i) for i in index.tolist()]))
        return np.array([size[:2] for size in found], np.int64).reshape(-1, 2)

    return ImageSet(labels, classes, read, Encoded(sizes, stamp))


def class_ranks(
    labels: NDArray[np.int64], values: NDArray[np.int64], where: Callable[[int], str]
) -> NDArray[np.int64]:
    """Return the rank of each stored label among those of the classes, `values`, sorted.

    Raises DataError for a label that is not among them; `where` names the place of image i.
    """
    unknown = np.flatnonzero(~np.isin(labels, values))
    if unknown.size:
        i = int(unknown[0])
        raise DataError(
            f"{where(i)}: label {labels[i]} is not one of the {len(values)} classes, whose labels "
            f"are {values[0]} to {values[-1]}"
        )
    return np.searchsorted(values, labels).astype(np.int64)


def file_stamp(root: Path, files: Sequence[Path]) -> str:
    """Return a text that changes when a file is replaced, renamed, added or removed."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        name = os.fsencode(file.relative_to(root))
        # The length of the name comes first, so that no two lists of files give the same bytes.
        digest.update(b"%d %d %d %s" % (len(name), stat.st_size, stat.st_mtime_ns, name))
    return digest.hexdigest()


def stacked(images: list[Tensor]) -> Images:
    """Return images [3, h, w] in the form of `ImageSet.load`."""
    if images and all(image.shape == images[0].shape for image in images):
        return torch.stack(images)
    return [image.contiguous() for image in images]


def moved(images: Images, device: torch.device) -> Images:
    """Return the same images on `device`."""
    if isinstance(images, Tensor):
        return images.to(device)
    return [image.to(device) for image in images]


def from_array(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> ImageSet:
    """Return a set in memory of `images` uint8 [N, 3, H, W]."""
    pixels = torch.from_numpy(images)
    return ImageSet(labels, classes, lambda index: pixels[torch.from_numpy(index)])


def subset(images: ImageSet, index: NDArray[np.int64]) -> ImageSet:
    """Return the images at `index`, in that order; this reads nothing."""
    encoded = images.encoded
    if encoded is not None:
        sizes, stamp = encoded.sizes, encoded.stamp
        order = hashlib.sha256(index.tobytes()).hexdigest()
        encoded = Encoded(lambda inner: sizes(index[inner]), lambda: f"{stamp()} {order}")
    return ImageSet(
        images.labels[index], images.classes, lambda inner: images.read(index[inner]), encoded
    )


def in_memory(images: ImageSet, limit: int = MEMORY_LIMIT) -> ImageSet:
    """Return the same set with its pixels in memory, if they have one size and fit `limit` bytes.

    Otherwise return `images` itself, which decodes on every load. The first image decides whether
    to try, so a set that is too large costs one read. Raises DataError for an image that cannot be
    decoded, if the set is read this far.
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


def lazily_cached(
    images: ImageSet, shape: tuple[int, int, int], limit: int = MEMORY_LIMIT
) -> ImageSet:
    """Return the same set of images of one `shape`; each is read once, when first asked for.

    Use it for images that cannot fail to be read. `in_memory` is for the others, since it finds a
    damaged image before a training starts. Return `images` itself if they do not fit `limit` bytes.
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
