"""What the tests marked `gpu` share: the device that they run on.

`STABKIT_TEST_DEVICE=cpu` runs them on a CPU. That rehearses all but what CUDA alone can show.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICE = os.environ.get("STABKIT_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="no CUDA device here"),
]


@contextmanager
def no_waits(enabled: bool = True) -> Iterator[None]:
    """Make each wait of the host for the device an error. On a CPU nothing waits."""
    if ON_CUDA and enabled:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if ON_CUDA:
            torch.cuda.set_sync_debug_mode("default")
