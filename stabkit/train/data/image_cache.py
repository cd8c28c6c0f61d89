"""Decoded images in one memory-mapped file, shared by every process that trains on them.

A file holds the pixels of one split, whole images as they were decoded, so that views are the same
to the bit with and without it. Its name and its header are a fingerprint of where they came from:
other images, another order or another decoder make another file. Layout, little-endian:

    16 bytes   "stabkit images 1"
    8          N, int64
    32         SHA-256 of the fingerprint, N and the sizes
    8 N        heights and widths, int32 [N, 2]
    the rest   the pixels of each image, uint8 [3, h, w], one after the other
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from stabkit.rundir import append_to, whole
from stabkit.train.data.image_set import Images, ImageSet, stacked
from stabkit.train.data.pixels import PIXELS_VERSION

_MAGIC = b"stabkit images 1"
_HEADER = len(_MAGIC) + 8 + 32
_CHUNK = 64  # images decoded before they are written


def cached(images: ImageSet, folder: str | None) -> ImageSet:
    """The same set, read from its file in ``folder``, which is made first where there is none.

    ``images`` itself without a folder, or if its pixels are in memory anyhow. Processes that want
    the same file at the same time wait for the one that makes it. A damaged file is made anew.
    Raises ValueError where the disk is too small or the folder cannot be used.
    """
    if folder is None or images.encoded is None:
        return images
    fingerprint = f"Pillow {PIL.__version__} pixels {PIXELS_VERSION} {images.encoded.stamp()}"
    name = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    file = Path(folder).expanduser() / f"{name}.images"
    try:
        if not _is_whole(file, fingerprint):
            file.parent.mkdir(parents=True, exist_ok=True)
            with append_to(file.with_suffix(".lock")) as lock:
                _wait_for(lock.fileno(), file)
                if not _is_whole(file, fingerprint):
                    _build(images, file, fingerprint)
        return _mapped(images, file)
    except OSError as error:
        raise ValueError(
            f"runtime.cache {folder!r}: cannot be used ({error}); "
            "name a folder that can be written, or leave it out"
        ) from error


def _wait_for(lock: int, file: Path) -> None:
    """The kernel lets go of the lock when its holder dies, however."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"{file}: waiting for the process that makes it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _is_whole(file: Path, fingerprint: str) -> bool:
    """Whether the file is there; one that is damaged is named and counts as none."""
    if file.exists() and not file.is_file():  # of a pipe one would wait for ever
        raise OSError(f"{file} is no file")
    try:
        with file.open("rb") as content:
            header = content.read(_HEADER)
            count = int.from_bytes(header[len(_MAGIC) : len(_MAGIC) + 8], "little")
            length = os.fstat(content.fileno()).st_size
            table = content.read(min(8 * count, length))
    except FileNotFoundError:
        return False
    if len(table) != 8 * count or header != _header(fingerprint, table):
        damage = "its header is not that of these images"
    elif length != (wanted := _length(_sizes(table))):
        damage = f"it has {length:,} bytes instead of {wanted:,}"
    else:
        return True
    _say(f"{file}: damaged, {damage}; it is made anew")
    return False


def _header(fingerprint: str, table: bytes) -> bytes:
    count = (len(table) // 8).to_bytes(8, "little")
    return _MAGIC + count + hashlib.sha256(fingerprint.encode() + count + table).digest()


def _sizes(table: bytes) -> NDArray[np.int64]:
    return np.frombuffer(table, "<i4").reshape(-1, 2).astype(np.int64)


def _length(sizes: NDArray[np.int64]) -> int:
    return _HEADER + 8 * len(sizes) + 3 * int(sizes.prod(axis=1).sum())


def _build(images: ImageSet, file: Path, fingerprint: str) -> None:
    """Write beside ``file`` and rename; whoever calls holds its lock."""
    assert images.encoded is not None
    sizes = images.encoded.sizes(np.arange(len(images)))
    table = sizes.astype("<i4").tobytes()
    size = f"{len(images):,} decoded images need {_length(sizes):,} bytes in {file.parent}"
    remedy = "name a larger disk in runtime.cache, cap data.num_train, or leave the cache out"
    free = shutil.disk_usage(file.parent).free
    if _length(sizes) > free:
        raise ValueError(f"runtime.cache: {size}, which has {free:,} free; {remedy}")
    _say(f"{file}: decoding {len(images):,} images once, {_length(sizes):,} bytes")
    began = time.monotonic()
    try:
        with whole(file) as out:
            out.write(_header(fingerprint, table) + table)
            _write_pixels(images, sizes, out)
    except OSError as error:
        raise ValueError(f"runtime.cache: {size}: {error}; {remedy}") from error
    _say(f"{file}: done in {time.monotonic() - began:.0f} s")


def _write_pixels(images: ImageSet, sizes: NDArray[np.int64], out: BinaryIO) -> None:
    for start in range(0, len(images), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(images)))
        for row, image in zip(chunk.tolist(), images.read(chunk), strict=True):
            if list(image.shape[1:]) != sizes[row].tolist():
                raise ValueError(
                    f"runtime.cache: image {row} has {list(image.shape[1:])} pixels and says "
                    f"{sizes[row].tolist()} in its header; leave the cache out"
                )
            out.write(image.contiguous().numpy().data)


def _mapped(images: ImageSet, file: Path) -> ImageSet:
    # Read only: of a private copy the kernel would refuse more than there is memory.
    content = np.memmap(file, np.uint8, "r").view(np.ndarray)
    sizes = _sizes(content[_HEADER : _HEADER + 8 * len(images)].tobytes())
    lengths = 3 * sizes.prod(axis=1)
    ends = _HEADER + 8 * len(images) + lengths.cumsum()

    def read(index: NDArray[np.int64]) -> Images:
        where = zip(
            ends[index].tolist(), lengths[index].tolist(), sizes[index].tolist(), strict=True
        )
        return stacked(
            [
                torch.from_numpy(content[end - length : end].copy()).view(3, *size)
                for end, length, size in where
            ]
        )

    return replace(images, read=read, encoded=None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
