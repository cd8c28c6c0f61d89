"""Calibrate `find_drift`: false alarms, and the slow sags that it finds."""

from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.detect import find_dips, find_drift
from stabkit.detect.simulate import HEALTHY, LONG, REALISTIC, Planted, healthy

TRULY_SAGS = ("overshoot", "sag, then rate drop")  # their curve falls, slowly: no false alarm
SAGS = [(width, depth) for width in (20, 40) for depth in (0.03, 0.05)]


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
    sags = []
    for base in ("constant", *REALISTIC[:2]):
        for width, depth in SAGS:
            found = np.array(each(partial(sag_found, base, width, depth), max(2, count // 3)))
            sags.append([base, f"{width}", f"{100 * depth:.0f}",
                         *(percent(share, 1) for share in found.mean(axis=0))])  # fmt: skip
    return "\n".join([
        "### Drifts: healthy runs that alarm\n",
        f"{count} runs a row. The curves of {' and '.join(TRULY_SAGS)} do fall, slowly.\n",
        table(["healthy scenario", "bits", "accuracy alone"], rows),
        "### Drifts: slow sags that are found\n",
        table(["scenario", "last evaluations", "points", "as a drift", "as a dip"], sags),
    ])  # fmt: skip


def drifts_in(name: str, seed: int) -> tuple[bool, bool]:
    """Tell whether a healthy run drifts with its bits, and by its accuracy alone."""
    curve = healthy(name, seed)
    with_bits = find_drift(curve.step, curve.accuracy, correct=curve.correct)
    return len(with_bits) > 0, len(find_drift(curve.step, curve.accuracy)) > 0


def sag_found(base: str, width: int, depth: float, seed: int) -> tuple[bool, bool]:
    """Tell whether a sag over the last `width` evaluations is a drift, and whether it is a dip."""
    curve = healthy(base, seed, (Planted(100 - width, 2 * width, depth, "v"),))
    known = {"correct": curve.correct}
    drifts = find_drift(curve.step, curve.accuracy, **known)
    return len(drifts) > 0, len(find_dips(curve.step, curve.accuracy, **known)) > 0
