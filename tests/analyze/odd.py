"""A function for the processes of a pool, in a module that is quick to import."""

import os
from pathlib import Path

from stabkit.rundir import left_out


def warn_of_odd(number: int) -> tuple[int, int]:
    if number % 2:
        left_out(Path(f"item {number}"), "odd")
    if number == 666:
        os._exit(9)  # as the kernel ends a process when memory is short
    if number == 13:
        raise ValueError("thirteen")
    return number, os.getpid()
