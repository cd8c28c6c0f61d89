"""Show how time and memory grow, beside theory: python -m benchmarks.growth.run

The training step grows with batch, depth and tokens; kNN with its bank and its queries; the run
table with the number of runs. Theory (subjects.py) is evaluated at the same sizes, so that a sum of
two powers has its own slope. The slope in the figure is the least-squares slope of log value over
log size, one for each round. Memory is the peak that a call allocates beyond what existed before
it: torch's (from its profiler) plus Python's and numpy's (tracemalloc). Writes growth.png and
growth.csv; with `--quick` it uses the smaller sizes and writes neither.
"""

import os
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler; must precede torch

import numpy as np
import torch

from benchmarks.growth.figure import draw, write_csv
from benchmarks.growth.subjects import Subject, subjects
from benchmarks.lib.results import Row, parser, publish
from benchmarks.lib.timing import median_interval, timed_block

FOLDER = Path(__file__).parent
ROUNDS = 5
GOAL = 1.3  # growth over theory's, from the smallest size to the largest


@dataclass(frozen=True)
class Curve:
    """`values[round][size]` in seconds or MiB, and `theory[size]` in arbitrary units."""

    what: str
    axis: str
    unit: str
    sizes: Sequence[int]
    values: list[list[float]]
    theory: list[float]

    @property
    def slopes(self) -> list[float]:
        return [slope(self.sizes, values) for values in self.values]

    @property
    def expected(self) -> float:
        return slope(self.sizes, self.theory)

    def row(self) -> Row:
        """Return how many times the value grows from the first size to the last, beside theory."""
        measured = {"s": "time", "MiB": "memory"}[self.unit]
        what = f"{self.what}, {measured} from {self.axis} {self.sizes[0]} to {self.sizes[-1]}"
        grown = [values[-1] / values[0] for values in self.values]
        expected = self.theory[-1] / self.theory[0]
        ratio = median_interval([factor / expected for factor in grown])
        middle = float(np.median(grown))
        return Row(what, "theory", middle, expected, "times", ratio, "at most", GOAL)


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    given = parser(__doc__).parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(given.threads)
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(device, Path(folder)):
            if given.quick:
                subject = replace(subject, sizes=subject.sizes[:3])
            curves += measure(subject, device, 2 if given.quick else ROUNDS)
    if not given.quick:
        name = "growth" if device.type == "cpu" else f"growth-{device.type}"
        draw(curves, FOLDER / f"{name}.png")
        write_csv(curves, FOLDER / f"{name}.csv")
    publish([curve.row() for curve in curves], given)


def measure(subject: Subject, device: torch.device, rounds: int) -> list[Curve]:
    """Measure the time of `rounds` rounds over all sizes, and the memory of one call per size."""
    calls = [subject.make(size) for size in subject.sizes]
    for call in calls:
        call()
    seconds = [[timed_block(device, 1, call)[0] for call in calls] for _ in range(rounds)]
    held = [[peak_bytes(call, device) / 2**20 for call in calls]]
    work, memory = ([theory(n) for n in subject.sizes] for theory in (subject.work, subject.held))
    axes = subject.what, subject.axis
    return [
        Curve(*axes, "s", subject.sizes, seconds, work),
        Curve(*axes, "MiB", subject.sizes, held, memory),
    ]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak of a call. On a CPU: torch's, with temporaries, plus Python's."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        tracemalloc.start()
        try:
            call()
            python = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return python + int(np.cumsum([0, *(change for _, change in changes)]).max())


if __name__ == "__main__":
    main()
