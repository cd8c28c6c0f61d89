"""Calibrate `find_drift`: false alarms, and the slow falls that it finds."""

from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.detect import find_dips, find_drift
from stabkit.detect.simulate import (
    HEALTHY,
    LONG,
    REALISTIC,
    Curve,
    Planted,
    draw_curve,
    healthy,
)
from stabkit.detect.simulate.trends import rise

TRULY_SAGS = ("overshoot", "sag, then rate drop")  # their curve falls, slowly: no false alarm
SAGS = [(width, depth) for width in (20, 40) for depth in (0.03, 0.05)]
FALLS = (0.0, 0.03, 0.04, 0.055, 0.07, 0.09, 0.11)
NOISES = ("restless", "1.5 to 3 points, AR .5 to .8")  # of the long falls
SEEDS = 5  # runs whose mean is sought in


def drift_tables(each: Each, runs: int) -> str:
    """Return the tables of `find_drift`."""
    count, rows, total = max(2, runs // 4), [], np.zeros(3, dtype=int)
    for name in HEALTHY:
        if name in LONG:
            continue
        alarms = np.array(each(partial(drifts_in, name), count, TESTING)).sum(axis=0)
        if name not in TRULY_SAGS:
            total += [count, *alarms]
        rows.append([name, *(interval(a, count) for a in alarms)])
    rows.append(["**all but those that sag**", *(interval(a, total[0]) for a in total[1:])])
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
        f"in the mean of {SEEDS} runs",
    ]
    return "\n".join([
        "### Drifts: healthy runs that alarm\n",
        f"{count} runs a row. The curves of {' and '.join(TRULY_SAGS)} do fall, slowly.\n",
        table(["healthy scenario", "bits", "accuracy alone"], rows),
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


def sag_found(base: str, width: int, depth: float, seed: int) -> tuple[bool, bool]:
    """Tell whether a sag over the last `width` evaluations is a drift, and whether it is a dip."""
    drift, dip, _ = _found(healthy(base, seed, (Planted(100 - width, 2 * width, depth, "v"),)))
    return drift, dip


def long_fall_found(noise: str, depth: float, seed: int) -> tuple[bool, bool, bool, bool]:
    """Tell whether a long fall is a drift, a dip, or either; and a drift or dip in a mean of runs.

    That mean is of SEEDS runs which fall alike; its samples are not compared.
    """
    curves = [long_fall(noise, depth, SEEDS * seed + i) for i in range(SEEDS)]
    mean = np.mean([curve.accuracy for curve in curves], axis=0)
    drifts, dips = find_drift(curves[0].step, mean), find_dips(curves[0].step, mean)
    return *_found(curves[0]), len(drifts) + len(dips) > 0


def long_fall(noise: str, depth: float, seed: int) -> Curve:
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


def _found(curve: Curve) -> tuple[bool, bool, bool]:
    dips = find_dips(curve.step, curve.accuracy, correct=curve.correct)
    drifts = find_drift(curve.step, curve.accuracy, correct=curve.correct, dips=dips)
    return len(drifts) > 0, len(dips) > 0, len(drifts) + len(dips) > 0
