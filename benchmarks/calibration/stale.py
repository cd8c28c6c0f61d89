"""Calibrate `find_stale_moments` on simulated healthy layers under Adam."""

from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, table
from stabkit.detect import find_stale_moments

KINDS = [(None, 0.0), (5.0, 0.0), (3.0, 0.0), *((None, s) for s in (0.1, 0.2, 0.3, 0.4))]
SIZES = {1: 100_000, 100: 100_000, 10_000: 10_000}  # elements of a layer -> steps


def stale_tables(each: Each, runs: int) -> str:
    """Return the table of false alarms; one run a cell, fewer steps for fewer `runs`."""
    scale = min(1.0, runs / 400)
    kinds = [(tail, common, beta2) for tail, common in KINDS for beta2 in (0.95, 0.999)]
    lengths = {elements: max(100, int(scale * steps)) for elements, steps in SIZES.items()}
    cells = [(*kind, *size) for kind in kinds for size in lengths.items()]
    events = iter(each(partial(one_cell, cells), len(cells), 0))
    rows = []
    for tail, common, beta2 in kinds:
        law = f"t({tail:g})" if tail else "normal"
        counts = (f"{next(events) / steps * 1e5:.0f}" for steps in lengths.values())
        rows.append([law, f"{common:g}", f"{beta2}", *counts])
    return "### Stale moments: events in 10^5 healthy steps\n\n" + table(
        ["elements", "factor's sigma", "beta2", *(f"{size:,} elements" for size in SIZES)], rows
    )


def one_cell(cells: list[tuple[float | None, float, float, int, int]], i: int) -> int:
    """Return the number of events in cell `i`."""
    return stale_moments(*cells[i], TESTING)


def stale_moments(
    tail: float | None, common: float, beta2: float, elements: int, steps: int, seed: int
) -> int:
    """Return the number of events in one simulated healthy layer."""
    rng = np.random.default_rng([seed, elements, int(beta2 * 1e4)])
    v, rms = np.zeros(elements), np.empty(steps)
    for t in range(steps):
        g = rng.standard_t(tail, elements) if tail else rng.standard_normal(elements)
        g *= np.exp(common * rng.standard_normal())
        v = beta2 * v + (1 - beta2) * g * g
        rms[t] = np.sqrt(np.mean(g * g / v) * (1 - beta2 ** (t + 1)))
    return len(find_stale_moments(np.arange(steps), rms, beta2))
