"""Every write operation of a process, counted; at one of them something happens instead.

Python's own files write through `Counted`, so one `write` here is one system call of the real
thing: what waits in a buffer is lost at a kill, as it would be. The writers of torch and pyarrow
end in such files too. A write is two operations: before it, and when half of its bytes are there.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = (
    "copy_file_range", "fsync", "ftruncate", "link", "mkdir", "remove", "rename", "replace",
    "rmdir", "sendfile", "symlink", "truncate", "unlink",
)  # fmt: skip
NEVER_FULL = ("ftruncate", "remove", "rmdir", "truncate", "unlink")
Act = Callable[[bool], None]  # told whether a full disk could refuse this one


class Writes:
    """Counts from 1. `act` happens at operation `at`, and at each one after it if `lasting`."""

    def __init__(self, act: Act, at: int, lasting: bool = False) -> None:
        self.count = 0
        self._act, self._at, self._lasting = act, at, lasting

    def one(self, refusable: bool = True) -> None:
        if self._is_now():
            self._act(refusable)

    def written(self, write: Callable[[Any], int], data: Any) -> int:
        self.one()
        if not self._is_now():
            return write(data)
        view = memoryview(data).cast("B")
        half = write(view[: len(view) // 2]) if len(view) > 1 else 0
        self._act(not half)  # a disk that fills up takes a part, and refuses what comes next
        return half or write(data)

    def _is_now(self) -> bool:
        self.count += 1
        return self.count == self._at or (self._lasting and self.count > self._at)


def count(writes: Writes) -> None:
    """From now on in this process; there is no way back, as it is a child that is to die."""
    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, _before(getattr(os, name), writes, name not in NEVER_FULL))
    plain_write, plain_open, plain_os_open = os.write, io.open, os.open

    class Counted(io.FileIO):
        def write(self, data: Any, /) -> int:
            return writes.written(super().write, data)

        def truncate(self, size: int | None = None, /) -> int:
            writes.one(False)
            return super().truncate(size)

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            writes.one()
        return plain_os_open(path, flags, *args, **kwargs)

    def open_(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+"):
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int) and opener is None:
            writes.one()
        raw = Counted(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    os.write = lambda fd, data: writes.written(lambda part: plain_write(fd, part), data)
    os.open = os_open
    io.open = builtins.open = open_
    import _io  # what tempfile calls

    _io.open = open_  # type: ignore[attr-defined]


def _before(call: Callable[..., Any], writes: Writes, refusable: bool) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        writes.one(refusable)
        return call(*args, **kwargs)

    return counted


def die_at(number: int) -> None:
    """SIGKILL at operation `number` of this process."""
    count(Writes(lambda _: os.kill(os.getpid(), signal.SIGKILL), number))


def full_at(number: int, lasting: bool) -> Writes:
    """No space left on the device at operation `number`, or from there on."""

    def act(refusable: bool) -> None:
        if refusable:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes = Writes(act, number, lasting)
    count(writes)
    return writes
