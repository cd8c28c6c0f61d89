"""Measure `find_dips` in short and long series: healthy runs that alarm, and dips that are found.

The curves rise as a + b (1 - exp(-t / c)), where c is 3 to 50 % of the run, so that some bend for
long. Noise has .2 to 1.5 points and an AR(1) coefficient of 0 to .7; in half of the runs it falls
to a half or a quarter. A dip is 4 to 12 points deep and 3 evaluations to a sixth of the run long.
"""

from functools import partial

import numpy as np

from benchmarks.calibration.dip_rules import ours, ours_without_bits
from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.detect.simulate import Planted, SimulatedCurve, draw_curve
from stabkit.detect.simulate.scenarios import plain

LENGTHS = (12, 20, 30, 45, 60, 100, 200)  # evaluations
SAMPLES = 2_000
FIRST = 4  # evaluations before a dip at least, and after it


def length_table(each: Each, runs: int) -> str:
    """Return a row for each length; `runs`: healthy runs, and as many with a dip."""
    rows = []
    for evals in LENGTHS:
        alarms = np.sum(each(partial(alarm, evals), runs, TESTING), axis=0)
        found = np.sum(each(partial(hit, evals), runs, TESTING + 500_000), axis=0)
        rows.append([str(evals), *(interval(n, runs) for n in alarms),
                     *(percent(n, runs) for n in found)])  # fmt: skip
    head = ["evaluations", "healthy runs that alarm, bits", "accuracy alone",
            "dips found, bits", "accuracy alone"]  # fmt: skip
    return (
        f"### Dips: series of {LENGTHS[0]} to {LENGTHS[-1]} evaluations\n\n{runs} runs a cell.\n\n"
        + table(head, rows)
    )


def alarm(evals: int, seed: int) -> tuple[bool, bool]:
    """Tell whether a healthy run alarms with its bits, and by its accuracy alone."""
    curve = bending(evals, np.random.default_rng([seed, evals]))
    return bool(ours(curve)), bool(ours_without_bits(curve))


def hit(evals: int, seed: int) -> tuple[bool, bool]:
    """Tell whether the planted dip is found with the bits, and by the accuracy alone."""
    rng = np.random.default_rng([seed, evals])
    width = int(rng.integers(3, max(3, min(15, evals // 6)) + 1))
    at = int(rng.integers(FIRST, evals - width - FIRST + 1))
    shape = ("box", "v", "sawtooth", "gauss")[int(rng.integers(4))]
    dip = Planted(at, width, float(rng.uniform(0.04, 0.12)), shape)
    curve = bending(evals, rng, (dip,))
    bits, alone = (
        any(first < at + width and last >= at for first, last in rule(curve))
        for rule in (ours, ours_without_bits)
    )
    return bits, alone


def bending(
    evals: int, rng: np.random.Generator, planted: tuple[Planted, ...] = ()
) -> SimulatedCurve:
    """Draw a run whose curve bends for a part of it that differs from run to run."""
    start, gain, part = (
        rng.uniform(0.05, 0.15),
        rng.uniform(0.3, 0.75),
        _log_uniform(rng, 0.03, 0.5),
    )
    noise, ar = _log_uniform(rng, 0.002, 0.015), float(rng.choice([0.0, 0.3, 0.5, 0.7]))
    last = noise / float(rng.choice([1.0, 1.0, 2.0, 4.0]))
    law = plain(
        lambda t: start + gain * (1 - np.exp(-t / part)),
        evals=evals, noise=(noise, last), ar=(ar, ar), flips=(0.05, 0.05), n=SAMPLES,
    )  # fmt: skip
    return draw_curve(law, rng, planted)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
