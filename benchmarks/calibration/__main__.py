"""Measure how often the detectors are wrong, and what they miss: python -m benchmarks.calibration

Prints, on simulated runs (stabkit.detect.simulate): false alarms on healthy runs with exact 95 %
intervals, power against depth, errors of onset and recovery, and the F1 of finding planted events
beside other detectors. Every other detector's parameter is the best of its grid on simulations with
seeds of their own (TUNING); the tables use other seeds (TESTING). The parameters of `find_dips`,
`find_drift` and `find_spikes` were set on neither. Name tables to print only those; `--runs N` sets
the number of healthy runs. All of it takes about 15 minutes on two cores.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.calibration.dips import dip_f1, healthy, places, power
from benchmarks.calibration.scores import TESTING
from benchmarks.calibration.spikes import fall_tables, spike_tables, stale_tables

TABLES = {
    "healthy": healthy,
    "power": power,
    "places": places,
    "dips-f1": dip_f1,
    "spikes": spike_tables,
    "falls": fall_tables,
    "stale-moments": stale_tables,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--runs", type=int, default=2000, help="healthy runs for each setting")
    arguments = parser.parse_args()
    if wrong := set(arguments.tables) - set(TABLES):
        parser.error(f"unknown table {', '.join(sorted(wrong))}; there are {', '.join(TABLES)}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:

        def each(function: Callable[[int], Any], count: int, first: int = TESTING) -> list[Any]:
            return list(pool.map(function, range(first, first + count), chunksize=20))

        for name in arguments.tables or TABLES:
            TABLES[name](each, arguments.runs)


if __name__ == "__main__":
    main()
