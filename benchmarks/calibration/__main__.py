"""Measure how often the detectors are wrong, and what they miss: python -m benchmarks.calibration

Prints Markdown tables, made of simulated runs (stabkit.detect.simulate): false alarms with exact 95
% intervals, what is found of what was planted, and other rules at equal false alarms. Bars are set
on seeds from 0 up, tables are made of seeds from 1,000,000 up. Name subjects to print only those;
`--write` also puts each, once it is done, between its markers in the docs.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: a thread for each process
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.calibration.scores import TESTING, Each
from benchmarks.lib.pages import fill

SUBJECTS = {  # name -> module and function that return its tables; imported when it is asked for
    "dips": "dips.dip_tables",
    "possible": "possible.possible_tables",
    "lengths": "lengths.length_table",
    "rivals": "rivals.rival_tables",
    "stricter": "stricter.stricter_table",
    "drifts": "drifts.drift_tables",
    "online": "online.online_tables",
    "online_spikes": "online_spikes.online_spike_tables",
    "spikes": "spikes.spike_tables",
    "losses": "losses.loss_tables",
    "levels": "levels.level_tables",
    "bursts": "bursts.burst_tables",
    "order": "relations.order_tables",
    "association": "relations.association_tables",
    "counts": "counts.count_tables",
    "stale": "stale.stale_tables",
    "verdicts": "verdicts.verdict_tables",
    "branches": "branches.branch_tables",
}
DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", help=f"some of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--runs", type=int, default=250, help="healthy runs of a scenario")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    given = parser.parse_args()
    if wrong := set(given.subjects) - set(SUBJECTS):
        parser.error(f"no subject {', '.join(sorted(wrong))}; there are {', '.join(SUBJECTS)}")
    subjects = given.subjects or list(SUBJECTS)
    pages = {name: page_of(name) for name in subjects} if given.write else {}
    with ProcessPoolExecutor(given.workers) as pool:
        for name in subjects:
            began = time.monotonic()
            text = tables_of(name)(in_processes(pool), given.runs)
            print(text, flush=True)
            if given.write:
                write(name, text, pages[name])
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def tables_of(name: str) -> Callable[[Each, int], str]:
    """Return the function that makes the tables of a subject."""
    module, function = SUBJECTS[name].split(".")
    made: Callable[[Each, int], str] = getattr(
        import_module(f"benchmarks.calibration.{module}"), function
    )
    return made


def in_processes(pool: ProcessPoolExecutor) -> Each:
    """Return the function that applies another to `count` seeds from `first` on."""

    def each(function: Callable[[int], Any], count: int, first: int = TESTING) -> list[Any]:
        chunk = max(1, count // 16)
        return list(pool.map(function, range(first, first + count), chunksize=chunk))

    return each


def page_of(name: str, folder: Path = DOCS) -> Path:
    """Return the page of the docs with the table of a subject. Raises SystemExit without one."""
    opening = f"<!-- calibration: {name} -->"
    pages = [page for page in folder.glob("*.md") if opening in page.read_text(encoding="utf-8")]
    if len(pages) != 1:
        raise SystemExit(f"{opening} must be in one page of {folder}, got {sorted(pages)}")
    return pages[0]


def write(name: str, text: str, page: Path) -> None:
    """Write the table of a subject into its page."""
    fill(page, f"calibration: {name}", f"\n{text.strip()}\n")


if __name__ == "__main__":
    main()
