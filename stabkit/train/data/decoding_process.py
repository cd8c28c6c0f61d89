"""The process that decodes images for a training, from its start to its end. It imports no torch.

It answers one request at a time, and no answer depends on an earlier one. It ends when the training
ends, however that ends, because the connection is closed then.
"""

import functools
import io
import os
import resource
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import BinaryIO, Literal, NamedTuple

from PIL import Image

from stabkit.train.data.pixels import check_size, rgb_planes

# The training alone decides what a signal to the whole job means; it may finish a step first.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_KEPT = 2  # free memories: the batch of this step and the one read ahead


class ByteRange(NamedTuple):
    """The bytes of one encoded image in a file: the whole file if `length` is None.

    `state` is what `file_state` gave when the place was found; None if the place is not compared.
    """

    path: str
    start: int = 0
    length: int | None = None
    state: tuple[int, int] | None = None


def file_state(file: BinaryIO) -> tuple[int, int]:
    """Return size and time of the last write, which change when a file is written or replaced."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


class ChangedError(Exception):
    """A file is no longer the one in which the places of images were found."""


class Decoded(NamedTuple):
    """The size of an image and where its pixels, uint8 [3, height, width], begin in the memory."""

    height: int
    width: int
    start: int = 0


class Request(NamedTuple):
    """What to do with each image, its encoded bytes or where they are, and Pillow's size limit.

    `free` lists the memories that nobody reads any longer.
    """

    what: Literal["pixels", "sizes"]
    images: list[ByteRange | bytes]
    max_pixels: int | None
    free: list[int]


class Reply(NamedTuple):
    """One result for each image, in order; a text says why an image cannot be decoded.

    With `length`, the descriptor of `memory`, which holds so many bytes, follows. With `failure`,
    nothing was done.
    """

    results: list[Decoded | str]
    length: int = 0
    memory: int = -1
    failure: str | None = None


def serve(descriptor: int, threads: int) -> None:
    """Answer the requests that come through `descriptor` until its other end is closed."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _lift_file_limit()
    # `check_size` refuses a picture that Pillow only warns about.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    connection, memories = Connection(descriptor), _Memories()
    with ThreadPoolExecutor(threads, "decode") as pool, suppress(EOFError, ConnectionError):
        while True:
            _answer(connection, connection.recv(), pool, memories)


def _lift_file_limit() -> None:
    """Raise the limit of the size of files: the kernel applies it to memory without a name too."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _answer(
    connection: Connection, request: Request, pool: ThreadPoolExecutor, memories: "_Memories"
) -> None:
    Image.MAX_IMAGE_PIXELS = request.max_pixels
    memories.free(request.free)
    if request.what == "sizes":
        connection.send(Reply(list(pool.map(_size, request.images))))
        return
    memory = memories.take()
    room = _Room(memory)
    try:
        results = list(pool.map(functools.partial(_pixels, room), request.images))
        os.ftruncate(memory, room.length)
    except (OSError, MemoryError) as error:
        memories.free([memory])
        why = str(error) or "none is left"
        connection.send(Reply([], failure=f"no memory for the pixels of a batch ({why})"))
        return
    connection.send(Reply(results, room.length, memory))
    if room.length:
        send_handle(connection, memory, os.getppid())
    else:
        memories.free([memory])


class _Memories:
    """Shared memories without a name, used again: new pages cost a tenth of the decoding.

    The kernel frees a memory when its last user is gone, however that ended. A number is the
    descriptor of a memory in this process.
    """

    def __init__(self) -> None:
        self._free: list[int] = []

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        if hasattr(os, "memfd_create"):
            return os.memfd_create("stabkit-images")
        with tempfile.TemporaryFile() as file:  # macOS
            return os.dup(file.fileno())

    def free(self, memories: list[int]) -> None:
        self._free += memories
        while len(self._free) > _KEPT:
            os.close(self._free.pop(0))


class _Room:
    """The memory of one batch; each thread takes the next part of it."""

    def __init__(self, descriptor: int) -> None:
        self.length = 0
        self._descriptor, self._lock = descriptor, threading.Lock()

    def write(self, planes: list[bytes]) -> int:
        """Write the planes one after the other and return where they begin."""
        with self._lock:
            start = self.length
            self.length += sum(map(len, planes))
        place = start
        for plane in planes:
            written = os.pwrite(self._descriptor, plane, place)
            if written != len(plane):
                raise OSError(f"{written:,} of {len(plane):,} bytes were written")
            place += written
        return start


# Both catch more than OSError: on broken bytes Pillow's decoders raise many kinds of error.
def _size(source: ByteRange | bytes) -> Decoded | str:
    try:
        with _opened(source) as image:  # reads the header alone
            return Decoded(image.height, image.width)
    except Exception as error:
        return _why(error)


def _pixels(room: _Room, source: ByteRange | bytes) -> Decoded | str:
    try:
        with _opened(source) as image:
            height, width, planes = image.height, image.width, rgb_planes(image)
    except MemoryError:  # the image may be sound
        raise
    except Exception as error:
        return _why(error)
    return Decoded(height, width, room.write(planes))


def _why(error: Exception) -> str:
    """Say what is wrong, the image or the reading of its file, whose errors have an errno."""
    if isinstance(error, ChangedError) or (isinstance(error, OSError) and error.errno):
        return f"cannot be read ({error})"
    return f"not an image that Pillow can decode ({error}); replace or remove it"


@contextmanager
def _opened(source: ByteRange | bytes) -> Iterator[Image.Image]:
    with _file(source) as file, Image.open(file) as image:
        check_size(image)
        yield image


def _file(source: ByteRange | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.length is None:
        return open(source.path, "rb")
    with open(source.path, "rb") as file:
        if source.state not in (None, file_state(file)):
            raise ChangedError(
                "its file was written or replaced after the run had begun; put the old one back, "
                "or begin a new run"
            )
        file.seek(source.start)
        content = file.read(source.length)
    if len(content) != source.length:
        raise ValueError(f"the file holds {len(content):,} of its {source.length:,} bytes")
    return io.BytesIO(content)
