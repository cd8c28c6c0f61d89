"""Keep decoded images in one memory-mapped file that all processes training on them share.

A file holds the pixels of one split: whole images, as they were decoded. Views are therefore the
same to the bit with and without it. The file's name and header are a fingerprint of the source:
other images, another order or another decoder make another file. Layout, little-endian:

    16 bytes   "stabkit images 1"
    8          N, int64
    32         SHA-256 of the fingerprint, N and the sizes
    8 N        heights and widths, int32 [N, 2]
    the rest   the pixels of each image, uint8 [3, h, w], one after the other
"""

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
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import Images, ImageSet, stacked
from stabkit.train.data.pixels import PIXELS_VERSION

_MAGIC = b"stabkit images 1"
_HEADER = len(_MAGIC) + 8 + 32
_CHUNK = 64  # images decoded before they are written


def disk_cached(images: ImageSet, folder: str | None) -> ImageSet:
    """Return the same set, read from its file in `folder`; make the file first if there is none.

    Return `images` itself without a folder, or if its pixels are in memory already. Processes that
    want the same file at the same time wait for the one that makes it. A damaged file is made anew.
    Raises DataError when an image cannot be decoded, the disk is too small or the folder cannot be
    used.
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
                # Look again: another process may have made the file in the meantime.
                if not _is_whole(file, fingerprint):
                    _build(images, file, fingerprint)
        return _mapped(images, file)
    except OSError as error:
        raise DataError(
            f"runtime.cache {folder!r}: cannot be used ({error}); "
            "name a folder that can be written, or leave it out"
        ) from error


def _wait_for(lock: int, file: Path) -> None:
    """Take the lock, however long it takes.

    The kernel releases a lock when its holder dies, so a killed process blocks nobody.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"{file}: waiting for the process that makes it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _is_whole(file: Path, fingerprint: str) -> bool:
    """Return whether the file is there and undamaged; name a damaged file on stderr."""
    if file.exists() and not file.is_file():  # opening a pipe would wait forever
        raise OSError(f"{file} is not a file")
    try:
        with file.open("rb") as content:
            header = content.read(_HEADER)
            count = int.from_bytes(header[len(_MAGIC) : len(_MAGIC) + 8], "little")
            length = os.fstat(content.fileno()).st_size
            # A damaged count may be huge: never ask for more bytes than the file has.
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
    """Decode all images into a file beside `file`, then rename it; the caller holds the lock."""
    assert images.encoded is not None
    sizes = images.encoded.sizes(np.arange(len(images)))
    table = sizes.astype("<i4").tobytes()
    size = f"{len(images):,} decoded images need {_length(sizes):,} bytes in {file.parent}"
    remedy = "name a larger disk in runtime.cache, cap data.num_train, or leave the cache out"
    # Ask before hours of decoding. The disk may still fill up: other programs write to it too.
    free = shutil.disk_usage(file.parent).free
    if _length(sizes) > free:
        raise DataError(f"runtime.cache: {size}, which has {free:,} free; {remedy}")
    _say(f"{file}: decoding {len(images):,} images once, {_length(sizes):,} bytes")
    began = time.monotonic()
    try:
        with whole(file) as out:
            out.write(_header(fingerprint, table) + table)
            _write_pixels(images, sizes, out)
    except OSError as error:
        raise DataError(f"runtime.cache: {size}: {error}; {remedy}") from error
    _say(f"{file}: done in {time.monotonic() - began:.0f} s")


def _write_pixels(images: ImageSet, sizes: NDArray[np.int64], out: BinaryIO) -> None:
    """Decode and write all images; raise DataError for one whose size is not that of its header."""
    for start in range(0, len(images), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(images)))
        for row, image in zip(chunk.tolist(), images.read(chunk), strict=True):
            if list(image.shape[1:]) != sizes[row].tolist():
                raise DataError(
                    f"runtime.cache: image {row} has {list(image.shape[1:])} pixels and says "
                    f"{sizes[row].tolist()} in its header; leave the cache out"
                )
            out.write(image.contiguous().numpy().data)


def _mapped(images: ImageSet, file: Path) -> ImageSet:
    """Return the same set, which copies its pixels from the mapped file."""
    # Map read-only: the kernel refuses a private, writable map that is larger than the memory.
    content = np.memmap(file, np.uint8, "r").view(np.ndarray)
    sizes = _sizes(content[_HEADER : _HEADER + 8 * len(images)].tobytes())
    lengths = 3 * sizes.prod(axis=1)
    ends = _HEADER + 8 * len(images) + lengths.cumsum()  # places in the file

    def read(index: NDArray[np.int64]) -> Images:
        where = zip(
            ends[index].tolist(), lengths[index].tolist(), sizes[index].tolist(), strict=True
        )
        return stacked(
            [
                # A copy, so that the caller may write to what it loaded.
                torch.from_numpy(content[end - length : end].copy()).view(3, *size)
                for end, length, size in where
            ]
        )

    return replace(images, read=read, encoded=None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
