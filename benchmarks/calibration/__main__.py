"""Measure how often the detectors are wrong, and what they miss: python -m benchmarks.calibration

Prints Markdown tables, made of simulated runs (stabkit.detect.simulate): false alarms with exact 95
% intervals, what is found of what was planted, and other rules at equal false alarms. Bars are set
on seeds from 0 up, tables are made of seeds from 1,000,000 up. Name subjects to print only those;
`--write` also puts each, once it is done, into docs/detectors.md.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.calibration.dips import dip_tables
from benchmarks.calibration.drifts import drift_tables
from benchmarks.calibration.scores import TESTING, Each
from benchmarks.calibration.spikes import spike_tables
from benchmarks.calibration.stale import stale_tables

SUBJECTS = {
    "dips": dip_tables,
    "drifts": drift_tables,
    "spikes": spike_tables,
    "stale": stale_tables,
}
PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", help=f"some of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--runs", type=int, default=400, help="healthy runs of a scenario")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    given = parser.parse_args()
    if wrong := set(given.subjects) - set(SUBJECTS):
        parser.error(f"no subject {', '.join(sorted(wrong))}; there are {', '.join(SUBJECTS)}")
    with ProcessPoolExecutor(given.workers) as pool:
        for name in given.subjects or SUBJECTS:
            began = time.monotonic()
            text = SUBJECTS[name](in_processes(pool), given.runs)
            print(text, flush=True)
            if given.write:
                PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), name, text))
            print(f"<!-- {name}: {time.monotonic() - began:.0f} s -->\n", flush=True)


def in_processes(pool: ProcessPoolExecutor) -> Each:
    """Return the function that applies another to `count` seeds from `first` on."""

    def each(function, count: int, first: int = TESTING) -> list:  # type: ignore[no-untyped-def, type-arg]
        return list(pool.map(function, range(first, first + count), chunksize=max(1, count // 16)))

    return each


def filled(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the markers of a subject; without them ValueError."""
    opening, closing = f"<!-- calibration: {name} -->", f"<!-- /calibration: {name} -->"
    for marker in (opening, closing):
        if page.count(marker) != 1:
            raise ValueError(f"{PAGE.name} must hold {marker} once, has it {page.count(marker)}x")
    before, rest = page.split(opening)
    return f"{before}{opening}\n\n{text.strip()}\n\n{closing}{rest.split(closing)[1]}"


if __name__ == "__main__":
    main()
