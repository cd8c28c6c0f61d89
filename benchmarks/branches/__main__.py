"""Measure branch studies on real events: python -m benchmarks.branches planted --runs FOLDER

Each seed is added to FOLDER/events.csv, and its branches to FOLDER/branches.csv, once it is
measured. The same command goes on where it was stopped. `--events 0` prints the table of what is
there; `--write` also puts it into docs/branches.md.
"""

import argparse
import os
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: a core for each process

from benchmarks.branches.outcome import FIRST, Outcome
from benchmarks.calibration.__main__ import page_of, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=["planted"])
    parser.add_argument("--events", type=int, default=40, help="events in all")
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the results")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    given = parser.parse_args()
    outcome = Outcome(given.runs)
    if outcome.events() < given.events:
        given.runs.mkdir(parents=True, exist_ok=True)
        measure(outcome, given.runs, given.events, given.workers, given.first)
    print(outcome.text())
    if given.write:
        write(given.subject, outcome.text(), page_of(given.subject))


def measure(outcome: Outcome, folder: Path, events: int, workers: int, first: int) -> None:
    """Measure seeds from `first` on until there are so many events."""
    from benchmarks.branches.planted import Measured, measure_event

    seeds = outcome.seeds(first)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def start() -> "Future[Measured]":
            seed = next(seeds)
            return pool.submit(measure_event, seed, folder / f"seed-{seed}")

        going = [start() for _ in range(min(workers, events - outcome.events()))]
        while going:
            done = next(as_completed(going))
            going.remove(done)
            outcome.add(*done.result())
            print(outcome.line(), flush=True)
            if outcome.events() + len(going) < events:
                going.append(start())


if __name__ == "__main__":
    main()
