"""Decode images in a process of its own, whose threads do not take the interpreter of the training.

The pixels come back in memory that both processes map and that has no name: the kernel frees it
when its last user is gone, however that ended.
"""

import atexit
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.reduction import recv_handle
from typing import Literal, NoReturn

import torch
from PIL import Image
from torch import Tensor

from stabkit.cores import usable_cores
from stabkit.train.data.decoding_process import IGNORED, ByteRange, Decoded, Reply, Request
from stabkit.train.data.errors import DecoderError


def decoded(images: Sequence[ByteRange | bytes]) -> list[Tensor | str]:
    """Return uint8 [3, h, w] for each image, or a text that says why not, and what to do.

    The bits and their order do not depend on the number of threads. Raises DecoderError when the
    process that decodes has died or has no memory.
    """
    answer, memory = _ask("pixels", images)

    def pixels(result: Decoded | str) -> Tensor | str:
        if isinstance(result, str):
            return result
        height, width, start = result
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=3 * height * width, offset=start)
        return flat.view(3, height, width)

    return [pixels(result) for result in answer.results]


def decoded_sizes(images: Sequence[ByteRange | bytes]) -> list[Decoded | str]:
    """Return the size of each image, from its header alone; errors as in `decoded`."""
    return _ask("sizes", images)[0].results


class _Process:
    """The process that decodes, and the connection to it."""

    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        threads = min(16, usable_cores())
        # Its module paths are those of this process, however this one was started.
        paths = [path for path in sys.path if isinstance(path, str)]  # import skips all others
        code = (
            f"import sys; sys.path[:] = {paths!r}\n"
            "from stabkit.train.data.decoding_process import serve\n"
            f"serve({theirs.fileno()}, {threads})"
        )
        # A signal to the whole job may come before it ignores them: until then they are blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the training
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.free: list[int] = []  # memories whose last tensor is gone

    def send(self, what: Literal["pixels", "sizes"], images: Sequence[ByteRange | bytes]) -> None:
        # Pop one by one: a tensor may end and append at any moment.
        free = [self.free.pop() for _ in range(len(self.free))]
        self.connection.send(Request(what, list(images), Image.MAX_IMAGE_PIXELS, free))

    def receive(self) -> tuple[Reply, mmap.mmap | None]:
        """Wait for the answer and map its memory, which is free once its last tensor is gone."""
        answer: Reply = self.connection.recv()
        if not answer.length:
            return answer, None
        descriptor = recv_handle(self.connection)
        try:
            memory = mmap.mmap(descriptor, answer.length)
        finally:
            os.close(descriptor)
        weakref.finalize(memory, self.free.append, answer.memory).atexit = False
        return answer, memory

    def end(self) -> None:
        self.connection.close()
        self.popen.kill()
        self.popen.wait()


_lock = threading.Lock()  # of the connection: one request at a time
_running: _Process | None = None


def _ask(
    what: Literal["pixels", "sizes"], images: Sequence[ByteRange | bytes]
) -> tuple[Reply, mmap.mmap | None]:
    global _running
    with _lock:
        process = _running = _running or _Process()
        try:
            process.send(what, images)
            answer, memory = process.receive()
            if answer.failure:
                raise DecoderError(f"the process that decodes images: {answer.failure}")
        except (EOFError, ConnectionError):
            _running = None
            _raise_death(process)
        except BaseException:
            # An answer that was not waited for must not become that of the next request, and
            # after a failure other threads may still write to the memory.
            _end()
            raise
    return answer, memory


def _raise_death(process: _Process) -> NoReturn:
    process.connection.close()
    with suppress(subprocess.TimeoutExpired):  # it closed its end, so it is about to exit
        process.popen.wait(10)
    process.popen.kill()
    code = process.popen.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    hint = "; the kernel kills what takes the last memory" if code == -signal.SIGKILL else ""
    raise DecoderError(
        f"the process that decodes images (pid {process.popen.pid}) {how}{hint}; "
        "started again, the run goes on from its last checkpoint"
    )


def _end() -> None:
    global _running
    if _running:
        _running.end()
    _running = None


def _forget() -> None:
    """Leave the process that decodes to the parent: this one was forked and makes its own.

    It must not hold the connection open either, or that process would outlive the parent.
    """
    global _lock, _running
    if _running:
        _running.connection.close()
    _lock, _running = threading.Lock(), None


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
