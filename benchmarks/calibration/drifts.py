"""Calibrate `find_drift` and falls that seeds share: false alarms, and the slow falls they find."""

from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.analyze.shared_falls import mean_falls
from stabkit.detect import find_dips, find_drift
from stabkit.detect.simulate import (
    HEALTHY,
    LONG,
    REALISTIC,
    Planted,
    SimulatedCurve,
    draw_curve,
    healthy,
)
from stabkit.detect.simulate.trends import rise

TRULY_SAGS = ("overshoot", "sag, then rate drop")  # their curve falls, slowly: no false alarm
SAGS = [(width, depth) for width in (20, 40) for depth in (0.03, 0.05)]
FALLS = (0.0, 0.03, 0.04, 0.055, 0.07, 0.09, 0.11)
NOISES = ("restless", "1.5 to 3 points, AR .5 to .8")  # of the long falls
SEEDS = 5  # runs of one setting
OTHER_STEPS = ("irregular", "missing 25 %")  # each seed is evaluated at steps of its own


def drift_tables(each: Each, runs: int) -> str:
    """Return the tables of `find_drift`."""
    count, rows, total = max(2, runs // 4), [], np.zeros(4, dtype=int)
    for name in HEALTHY:
        if name in LONG:
            continue
        alarms = list(np.array(each(partial(drifts_in, name), count, TESTING)).sum(axis=0))
        rows.append([name, *(interval(a, count) for a in alarms), "-"])
        if name not in OTHER_STEPS:
            alarms.append(sum(each(partial(shared_in, name), count, TESTING)))
            rows[-1][-1] = interval(alarms[-1], count)
        if name not in TRULY_SAGS and name not in OTHER_STEPS:
            total += [count, *alarms]
    rows.append(["**all of these**", *(interval(a, total[0]) for a in total[1:])])
    few, sags, falls = max(2, count // 3), [], []
    for base in ("constant", *REALISTIC[:2]):
        for width, depth in SAGS:
            found = np.array(each(partial(sag_found, base, width, depth), few))
            sags.append([base, f"{width}", f"{100 * depth:.0f}",
                         *(percent(share, 1) for share in found.mean(axis=0))])  # fmt: skip
    for noise in NOISES:
        for depth in FALLS:
            found = np.array(each(partial(long_fall_found, noise, depth), few)).mean(axis=0)
            falls.append([noise, f"{100 * depth:g}", *(percent(share, 1) for share in found)])
    head = [
        "noise",
        "points",
        "as a drift",
        "as a dip",
        "as either",
        f"shared by {SEEDS} seeds",
    ]
    return "\n".join([
        "### Drifts: healthy runs that alarm\n",
        f"{count} runs a row, and as many sets of {SEEDS} seeds. *All of these* leaves out "
        f"`{'` and `'.join(TRULY_SAGS)}`, whose curves do fall slowly, and rows with a dash, whose "
        "seeds were not evaluated at the same steps.\n",
        table(["healthy scenario", "bits", "accuracy alone", "shared"], rows),
        "### Drifts: slow sags that are found\n",
        f"{few} runs a row.\n",
        table(["scenario", "last evaluations", "points", "as a drift", "as a dip"], sags),
        "### Drifts: long falls that come back\n",
        f"{few} runs a row, 121 evaluations: down over 30 and back over 30, on a level curve.\n",
        table(head, falls),
    ])  # fmt: skip


def drifts_in(name: str, seed: int) -> tuple[bool, bool]:
    """Tell whether a healthy run drifts with its bits, and by its accuracy alone."""
    curve = healthy(name, seed)
    with_bits = find_drift(curve.step, curve.accuracy, correct=curve.correct)
    return len(with_bits) > 0, len(find_drift(curve.step, curve.accuracy)) > 0


def shared_in(name: str, seed: int) -> bool:
    """Tell whether healthy seeds of one setting seem to fall together."""
    return _shared([healthy(name, SEEDS * seed + i) for i in range(SEEDS)])


def sag_found(base: str, width: int, depth: float, seed: int) -> tuple[bool, bool]:
    """Tell whether a sag over the last `width` evaluations is a drift, and whether it is a dip."""
    drift, dip, _ = _found(healthy(base, seed, (Planted(100 - width, 2 * width, depth, "v"),)))
    return drift, dip


def long_fall_found(noise: str, depth: float, seed: int) -> tuple[bool, bool, bool, bool]:
    """Tell whether a long fall is a drift, a dip, or either, and whether seeds seem to share it."""
    curves = [long_fall(noise, depth, SEEDS * seed + i) for i in range(SEEDS)]
    return *_found(curves[0]), _shared(curves)


def long_fall(noise: str, depth: float, seed: int) -> SimulatedCurve:
    """Draw a run in one of NOISES, level from its first third on but for a long fall.

    It goes down over 30 evaluations and comes back over 30. Its answers flip as in `restless`.
    """
    rng = np.random.default_rng([seed, *b"long fall"])
    law = HEALTHY["restless"](rng)
    size = law.step.size
    law = replace(law, level=rise(np.linspace(0, 1, size)))
    if noise != "restless":
        scale, ar = rng.uniform(0.015, 0.03), rng.uniform(0.5, 0.8)
        law = replace(law, noise=np.full(size, scale), ar=np.full(size, ar))
    return draw_curve(law, rng, (Planted(40, 60, depth, "v"),))


def _found(curve: SimulatedCurve) -> tuple[bool, bool, bool]:
    dips = find_dips(curve.step, curve.accuracy, correct=curve.correct)
    drifts = find_drift(curve.step, curve.accuracy, correct=curve.correct, dips=dips)
    return len(drifts) > 0, len(dips) > 0, len(drifts) + len(dips) > 0


def _shared(curves: list[SimulatedCurve]) -> bool:
    return len(mean_falls(curves[0].step, np.stack([curve.accuracy for curve in curves]))) > 0
