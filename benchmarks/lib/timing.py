"""Time a block of steps, and give a median its interval."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Interval(NamedTuple):
    middle: float
    low: float
    high: float


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median and the narrowest pair of order statistics around it that holds 95 %.

    It is free of assumptions about the distribution: the number of values below the true median is
    Binomial(n, 1/2). Fewer than six values have no such pair; the range is returned instead.
    """
    ordered, n = sorted(values), len(values)
    outside, below = 0, 0  # `outside`: 2^n times the probability of one tail
    while (outside + math.comb(n, below)) / 2**n <= 0.025:
        outside += math.comb(n, below)
        below += 1
    below = max(below, 1)
    return Interval(statistics.median(ordered), ordered[below - 1], ordered[n - below])


def timed_block(device: torch.device, steps: int, step: Callable[[], None]) -> tuple[float, float]:
    """Return wall seconds and CPU seconds per step. Wait for the device only at both ends."""
    wait(device)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - began) / steps, (time.process_time() - used) / steps


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
