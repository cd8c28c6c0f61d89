"""Processes that are to die: forked one after the other from one that has all it needs imported."""

import errno
import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[..., int]  # a function and its arguments; the exit code, as subprocess has it
Tell = Callable[[str], None]
DISK = 1  # the exit code of an OSError


@contextmanager
def children(warm_up: Callable[[], object]) -> Iterator[Run]:
    """`warm_up` is called once: what it imports and makes is there in every child."""
    ours, theirs = multiprocessing.Pipe()
    # a server forks it: a test process may have threads, which a fork does not take along
    process = multiprocessing.get_context("forkserver").Process(
        target=_serve, args=(theirs, warm_up), daemon=True
    )
    process.start()
    theirs.close()

    def run(function: Callable[..., object], *args: Any) -> int:
        ours.send((function, args))
        return int(ours.recv())

    try:
        yield run
    finally:
        ours.close()
        process.join()


def _serve(requests: Connection, warm_up: Callable[[], object]) -> None:
    warm_up()
    gc.freeze()
    while True:
        try:
            function, args = requests.recv()
        except EOFError:
            return
        if (child := os.fork()) == 0:
            _end(function, args)
        requests.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _end(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    code = 70
    try:
        code = int(function(*args) or 0)  # type: ignore[call-overload]
    except OSError as error:
        code = DISK
        if error.errno != errno.ENOSPC:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
