"""Time `stabkit analyze` and `stabkit report`, and count what they do twice.

    python -m benchmarks.speed.analyze            # 1,200 runs; some minutes
    python -m benchmarks.speed.analyze --quick    # 60 runs

A report of six runs may read each of the three tables of a run once, and may run each detector once
on each series. The report is made in process, `analyze` in a fresh process.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.lib.planted import plant_run
from benchmarks.lib.results import Row, Times, parser, publish
from benchmarks.lib.timing import Interval
from stabkit.analyze import accuracy_events, gradient_events
from stabkit.cli import main as stabkit
from stabkit.rundir import TABLES
from stabkit.store import reader

STEPS = 300  # 60 evaluations
LAYERS = [f"blocks.{i}" for i in range(8)]
RATES = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
LIMIT_S = 60 / 1200  # of `analyze`, per run, on two cores
REPORTED = 6  # runs in the report
# Runs a command and prints the peak of its memory in KiB. The peak that the system tells of a child
# is at least the memory of the process that started it, so a small process has to start it.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    given = parser(__doc__).parse_args()
    runs = 60 if given.quick else 1200
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        plant(few, REPORTED)
        plant(many, runs)
        counted, report_s = count_work(few, Path(folder) / "report.html")
        analyze_s, memory = analyze(many)
    limit = Times([analyze_s], [runs * LIMIT_S])
    rows = [
        count_row("tables read", counted["read_table"], REPORTED * len(TABLES)),
        count_row("calls of search_dips", counted["search_dips"], REPORTED),
        count_row("calls of find_layer_spikes", counted["find_layer_spikes"], REPORTED),
        limit.row(f"analyze, {runs:,} runs of {STEPS // 5} evaluations", "limit", "at most", 1.0),
    ]
    publish(rows, given, notes=[
        f"The report of {REPORTED} runs took {report_s:.1f} s. A process of `analyze` held "
        f"{memory:,.0f} MiB at most."
    ])  # fmt: skip


def plant(folder: Path, runs: int) -> None:
    """Write runs of six learning rates with several seeds. Every fifth run has a dip."""
    with mock.patch("os.fsync"):  # durability is not measured here
        for number in range(runs):
            settings = {"optim.lr": RATES[number % 6], "seed": number // 6}
            plant_run(folder, settings, STEPS, LAYERS, dip_at=150 if number % 5 == 4 else None)


def analyze(folder: Path) -> tuple[float, float]:
    """Return the seconds of `stabkit analyze` in a fresh process, and its peak of memory in MiB."""
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "stabkit", "analyze", str(folder)]
    began = time.perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - began, int(out) / 2**10


def count_work(folder: Path, page: Path) -> tuple[Counter[str], float]:
    """Return how often a report reads a table and runs a detector, and its seconds."""
    counted: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for module, name in (
            (reader, "read_table"), (accuracy_events, "search_dips"),
            (gradient_events, "find_layer_spikes"),
        ):  # fmt: skip
            stack.enter_context(counting(module, name, counted))
        began = time.perf_counter()
        if stabkit(["report", str(folder), "-o", str(page)]):
            sys.exit("stabkit report failed")
        return counted, time.perf_counter() - began


@contextlib.contextmanager
def counting(module: Any, name: str, counted: Counter[str]) -> Iterator[None]:
    """Count the calls of a function through `module`. A call without values does not count."""
    function = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if [] not in [arg for arg in args if isinstance(arg, list)]:
            counted[name] += 1
        return function(*args, **kwargs)

    with mock.patch.object(module, name, call):
        yield


def count_row(what: str, found: int, needed: int) -> Row:
    ratio = found / needed
    interval = Interval(ratio, ratio, ratio)
    return Row(f"report of {REPORTED} runs, {what}", "each once", found, needed, "", interval,
               "at most", 1.0)  # fmt: skip


if __name__ == "__main__":
    main()
