"""Keep the garbage collector out of the start and the end of a process.

Importing torch makes some million objects. Python searches them for garbage again and again while
they are made, and once more at the exit. It finds next to nothing, and takes a core-second or so.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect no garbage inside; for imports."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def leave_garbage_at_exit() -> None:
    """Let this process end without a last search; for processes that run nothing but stabkit."""
    atexit.register(gc.freeze)
