"""A process starts and ends without searches for garbage, and nothing else changes."""

import gc
import subprocess
import sys

import pytest

from stabkit.garbage import no_collections


def test_a_collector_is_as_it_was_afterwards() -> None:
    def fails() -> None:
        with no_collections():
            assert not gc.isenabled()
            raise KeyError("of an import")

    with pytest.raises(KeyError):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_process_ends_without_a_search_for_garbage(leaves: bool) -> None:
    """An object in a circle is finalized by a search alone."""
    code = """
import gc
from stabkit.garbage import leave_garbage_at_exit
class InCircle:
    def __init__(self): self.own = self
    def __del__(self): print("found")
gc.disable()
InCircle()
"""
    code += "leave_garbage_at_exit()\n" if leaves else ""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("" if leaves else "found\n")
