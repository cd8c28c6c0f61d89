"""Measure the detectors of levels: departures, long rises, unrest and growth.

They have thresholds instead of tests, so a table says how often healthy series pass them, and how
often what they are for is found.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.calibration.losses import student
from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.detect import find_departure, find_long_rises, find_loss_unrest, find_unrest
from stabkit.detect.departure import ABOVE_BEST
from stabkit.detect.growth import find_growth
from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate import NORMS, REALISTIC, ar1, healthy, norms
from stabkit.detect.spikes import usable_series

Draw = Callable[[np.random.Generator, int], FloatArray]
VALUES = (100, 300, 1_000, 3_000)  # of a loss
STEPS = 3_000  # of gradient norms


def wandering(rng: np.random.Generator, values: int) -> FloatArray:
    """Return a falling loss whose noise is slow: AR(1) .9, 5 %."""
    level = 2.6 + 2.2 * (1 + np.arange(values) / max(20.0, 0.005 * values)) ** -0.45
    return np.asarray(level * np.exp(0.05 * ar1(rng, values, 0.9)[:, 0]))


LOSSES: dict[str, Draw] = {
    "t5, 3 %": partial(student, 5.0, 0.03),
    "t5, 10 %": partial(student, 5.0, 0.1),
    "slow noise, 5 %": wandering,
}


def climbing(times: float, since: FloatArray) -> FloatArray:
    """Return a factor that grows evenly to `times` from the middle of the run on."""
    return np.asarray(1 + (times - 1) * np.clip(2 * since - 1, 0, 1))


def leaving(times: float, since: FloatArray) -> FloatArray:
    """Return a factor that is `times` from 60 % of the run on."""
    return np.where(since >= 0.6, times, 1.0)


def passing(times: float, since: FloatArray) -> FloatArray:
    """Return a factor that grows to `times` and back within a fifth of the run."""
    return np.asarray(1 + (times - 1) * np.maximum(0, 1 - np.abs(since - 0.6) / 0.1))


def swinging(times: float, since: FloatArray) -> FloatArray:
    """Return a factor that swings ten times in the second half, up and down by `times`."""
    return np.where(since >= 0.5, times ** np.sin(2 * np.pi * 20 * since), 1.0)


FACTORS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "climbs to 1.3 times in its second half": partial(climbing, 1.3),
    "climbs to 2 times in its second half": partial(climbing, 2.0),
    "1.6 times from 60 % of the run on": partial(leaving, 1.6),
    "rises to 3 times and back in a fifth of the run": partial(passing, 3.0),
    "swings ten times in its second half, 2 times up and down": partial(swinging, 2.0),
}


def level_tables(each: Each, runs: int) -> str:
    """Return the tables; `runs`: series of each kind."""
    return "\n".join([
        f"### Losses: levels\n\n{runs} series a row; of those with a change {3 * runs}.\n",
        loss_table(each, runs),
        f"### Accuracies: unrest\n\n{runs} runs a row.\n", unrest_table(each, runs),
        f"### Gradient norms: growth\n\n{runs} series of {STEPS:,} steps a row.\n",
        growth_table(each, runs),
    ])  # fmt: skip


def of_loss(noise: str, factor: str, values: int, seed: int) -> tuple[bool, bool, bool, bool]:
    """Tell whether a loss left, rose for long, swings, or ended above its best level."""
    loss = LOSSES[noise](np.random.default_rng([seed, values]), values)
    if factor:
        loss = loss * FACTORS[factor](np.arange(values) / values)
    step = np.arange(values)
    left = len(find_departure(step, loss)) > 0
    above = not left and len(find_departure(step, loss, ratio=ABOVE_BEST)) > 0
    return left, len(find_long_rises(step, loss)) > 0, len(find_loss_unrest(step, loss)) > 0, above


def loss_table(each: Each, runs: int) -> str:
    rows = []
    for noise in LOSSES:
        for values in VALUES:
            alarms = np.sum(each(partial(of_loss, noise, "", values), runs, TESTING), axis=0)
            rows.append(
                [f"healthy: {noise}, {values:,} values", *(interval(n, runs) for n in alarms)]
            )
    for factor in FACTORS:
        found = np.concatenate([
            each(partial(of_loss, noise, factor, values), runs // 4, TESTING + 500_000)
            for noise in LOSSES for values in VALUES
        ])  # fmt: skip
        rows.append([factor, *(percent(n, len(found)) for n in found.sum(axis=0))])
    return table(["loss", "departure", "long rise", "unrest", "above its best"], rows)


def of_accuracy(name: str, swing: float, period: int, seed: int) -> bool:
    """Tell whether an accuracy has unrest, which swings in its second half by `swing`."""
    curve = healthy(name, seed)
    at = np.arange(len(curve.step))
    lost = swing * ((at % period) < period / 2) * (at >= len(at) // 2)
    return len(find_unrest(curve.step, np.clip(curve.accuracy - lost, 0, 1))) > 0


def unrest_table(each: Each, runs: int) -> str:
    kinds = ((0.0, 2), (0.3, 2), (0.1, 2), (0.2, 10))
    rows = []
    for name in (*REALISTIC, "restless", "noise falls", "noise grows"):
        told = [sum(each(partial(of_accuracy, name, *kind), runs, TESTING)) for kind in kinds]
        rows.append([name, interval(told[0], runs), *(percent(n, runs) for n in told[1:])])
    head = ["noise of", "healthy", "alternates by 30 points", "by 10 points",
            "every ten evaluations by 20 points"]  # fmt: skip
    return table(head, rows)


def of_norm(name: str, times: float, seed: int) -> bool:
    """Tell whether a gradient norm grows, which rises evenly in its logarithm to `times`."""
    growing = np.exp(np.log(times) * np.clip(np.arange(STEPS) / STEPS - 0.3, 0, 0.5) / 0.5)
    series = usable_series(np.arange(STEPS), norms(name, seed, steps=STEPS) * growing)
    return len(find_growth([series])[0]) > 0


def growth_table(each: Each, runs: int) -> str:
    rows = []
    for name in NORMS:
        told = [sum(each(partial(of_norm, name, k), runs, TESTING)) for k in (1.0, 10.0, 50.0)]
        rows.append([name, interval(told[0], runs), *(percent(n, runs) for n in told[1:])])
    return table(["gradient norm", "healthy", "grows 10 times", "grows 50 times"], rows)
