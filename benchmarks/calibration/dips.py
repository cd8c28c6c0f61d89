"""Calibrate the detectors of dips and drifts on simulated runs."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy import signal

from benchmarks.calibration.scores import (
    TESTING,
    TUNING,
    Each,
    Spans,
    f1,
    interval,
    matched,
    merged,
    per_steps,
    rolling_sigma,
    table,
    times_mean,
)  # fmt: skip
from stabkit.detect import find_dips, find_drift
from stabkit.detect.robust import difference_scale
from stabkit.detect.simulate import EVERY, TRENDS, Curve, Planted, simulate_curve

EVALS = 100


def ours(curve: Curve, samples: str = "bits") -> Spans:
    options = {"bits": {"correct": curve.correct}, "n": {"n": curve.correct.shape[1]}, "none": {}}
    return _spans(find_dips(curve.step, curve.accuracy, **options[samples]), curve)


def ours_for_f1(curve: Curve, k: float) -> Spans:
    """Find dips with a lower bar, which is tuned like the parameter of every other detector."""
    options = {"threshold": k, "min_fall": 2.0, "alpha": 0.05}
    return _spans(find_dips(curve.step, curve.accuracy, correct=curve.correct, **options), curve)


def _spans(found: pd.DataFrame, curve: Curve) -> Spans:
    ends = found["recovery"].fillna(curve.step[-1] + EVERY) - EVERY
    return [
        (int(a) // EVERY + 1, int(b) // EVERY) for a, b in zip(found["onset"], ends, strict=True)
    ]


def peaks(curve: Curve, k: float) -> Spans:
    """Apply scipy's find_peaks to the inverted curve: prominence k noise scales, width >= 2."""
    noise = max(difference_scale(curve.accuracy), 1e-3)
    _, shown = signal.find_peaks(-curve.accuracy, prominence=k * noise, width=2, rel_height=0.8)
    return merged(
        (math.ceil(a), math.floor(b))
        for a, b in zip(shown["left_ips"], shown["right_ips"], strict=True)
    )


def pelt(curve: Curve, k: float) -> Spans:
    """Apply ruptures' PELT (l2, penalty k s^2 ln T): segments a point below the one before."""
    import ruptures

    noise = max(difference_scale(curve.accuracy), 1e-3)
    model = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(curve.accuracy)
    ends = model.predict(pen=k * noise**2 * math.log(curve.accuracy.size))
    begins = [0, *ends[:-1]]
    means = [curve.accuracy[a:b].mean() for a, b in zip(begins, ends, strict=True)]
    return [(begins[i], ends[i] - 1) for i in range(1, len(ends)) if means[i] < means[i - 1] - 0.01]


def error_sigma(curve: Curve, k: float) -> Spans:
    return rolling_sigma(1 - curve.accuracy, k, 128)


def error_mean(curve: Curve, k: float) -> Spans:
    return times_mean(1 - curve.accuracy, k, 128)


DIP_DETECTORS: dict[str, tuple[Callable[[Curve, float], Spans], Sequence[float]]] = {
    # name -> detector, the grid of its parameter k, from eager to silent
    "find_dips, threshold k": (ours_for_f1, (1.5, 2, 2.5, 3, 3.5, 4, 5)),
    "find_peaks, prominence k s": (peaks, (2, 3, 4, 5, 6, 8, 10, 12, 15)),
    "ruptures PELT, penalty k s2 ln T": (pelt, (2, 3, 5, 8, 12, 20, 30, 50)),
    "error above mean + k std of the last 128": (error_sigma, (2, 2.5, 3, 4, 6)),
    "error above k times the mean of the last 128": (error_mean, (1.1, 1.2, 1.5, 2, 3)),
}
SILENT = 0.01  # the share of healthy runs that may alarm


def random_run(seed: int, noise: float, ar: float, n: int = 1000) -> tuple[Curve, list[Planted]]:
    """Simulate a run with up to three dips of 2 to 12 points and 2 to 15 evaluations."""
    rng = np.random.default_rng(seed)
    planted: list[Planted] = []
    at = int(rng.integers(10, 30))
    for _ in range(int(rng.integers(0, 4))):
        width = int(rng.integers(2, 16))
        if at + width > EVALS - 3:
            break
        shape = ("box", "v", "sawtooth")[int(rng.integers(3))]
        planted.append(Planted(at, width, float(rng.uniform(0.02, 0.12)), shape))  # type: ignore[arg-type]
        at += width + int(rng.integers(12, 40))
    trend = list(TRENDS)[int(rng.integers(len(TRENDS)))]
    curve = simulate_curve(rng, evals=EVALS, n=n, trend=trend, noise=noise, ar=ar,
                           planted=tuple(planted))  # fmt: skip
    return curve, planted


def healthy_dips(ar: float, samples: str, seed: int) -> tuple[int, int]:
    """Return the numbers of dips and drifts found in a healthy run; trends take turns."""
    rng = np.random.default_rng(seed)
    curve = simulate_curve(rng, evals=EVALS, trend=list(TRENDS)[seed % len(TRENDS)], ar=ar)
    options = {"bits": {"correct": curve.correct}, "n": {"n": 1000}, "none": {}}[samples]
    drifts = find_drift(curve.step, curve.accuracy, **options)
    return len(ours(curve, samples)), len(drifts)


def healthy_alarm(detector: Callable[[Curve], Spans], ar: float, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    trend = list(TRENDS)[seed % len(TRENDS)]
    return len(detector(simulate_curve(rng, evals=EVALS, trend=trend, ar=ar))) > 0


def one_dip(
    depth: float, width: int, ar: float, samples: str, seed: int
) -> tuple[bool, float, float]:
    """Tell whether a box dip in the middle of a run is found, and the errors of both ends."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(20, 80))
    trend = ("flat", "linear", "saturating")[seed % 3]
    curve = simulate_curve(
        rng, evals=EVALS, trend=trend, ar=ar, planted=(Planted(at, width, depth),)
    )
    for first, last in ours(curve, samples):
        if first < at + width and last >= at:
            return True, first - at, last + 1 - (at + width)
    return False, math.nan, math.nan


def dip_scores(
    detector: Callable[[Curve], Spans], noise: float, ar: float, seed: int
) -> tuple[int, int, int]:
    curve, planted = random_run(seed, noise, ar)
    return matched([(dip.at, dip.at + dip.width - 1) for dip in planted], detector(curve))


def healthy(each: Each, runs: int) -> None:
    print("## Healthy runs: false alarms\n")
    rows = []
    for samples, label in (("bits", "bits"), ("n", "n alone"), ("none", "neither")):
        for ar in (0.0, 0.5, 0.8):
            found = each(partial(healthy_dips, ar, samples), runs)
            dips, drifts = (sum(f[i] > 0 for f in found) for i in (0, 1))
            steps = runs * EVALS * EVERY
            rate = per_steps(sum(f[0] for f in found), steps)
            rows.append([label, f"{ar}", interval(dips, runs), rate, interval(drifts, runs)])
    table(["known of the samples", "AR(1)", "runs with a dip", "dips in 10^5 steps",
           "runs with a drift"], rows)  # fmt: skip


def power(each: Each, runs: int) -> None:
    print("## Power: dips of four evaluations, n = 1,000\n")
    depths, count = (0.02, 0.03, 0.04, 0.05, 0.07, 0.10), max(60, runs // 5)
    rows = []
    for samples, label in (("bits", "bits"), ("n", "n alone"), ("none", "neither")):
        for ar in (0.0, 0.5):
            cells = []
            for depth in depths:
                found = each(partial(one_dip, depth, 4, ar, samples), count)
                cells.append(interval(sum(f[0] for f in found), count))
            rows.append([label, f"{ar}", *cells])
    table(["known", "AR(1)", *(f"{100 * d:.0f} points" for d in depths)], rows)


def places(each: Each, runs: int) -> None:
    count = max(60, runs // 5)
    print("## Where: errors in evaluations, bits, those found\n")
    rows = []
    for ar in (0.0, 0.5):
        for depth, width in ((0.05, 4), (0.1, 4), (0.05, 10), (0.1, 10)):
            found = [f for f in each(partial(one_dip, depth, width, ar, "bits"), count) if f[0]]
            row = [f"{ar}", f"{100 * depth:.0f}", f"{width}"]
            for i in (1, 2):
                errors = np.array([f[i] for f in found])
                middle, size = np.median(errors), np.abs(errors)
                row += [f"{middle:+.0f}", f"{np.mean(size <= 1):.0%}"]
            rows.append(row)
    table(["AR(1)", "points", "evaluations", "median of onset", "within one",
           "median of recovery", "within one"], rows)  # fmt: skip


def dip_f1(each: Each, runs: int) -> None:
    print("## F1 on runs with up to three dips, and false alarms on healthy ones\n")
    settings = [(noise, ar) for ar in (0.0, 0.5) for noise in (0.0025, 0.005, 0.01)]
    count = max(40, runs // 10)

    def scores(detector: Callable[[Curve], Spans], first: int, size: int) -> list[float]:
        return [f1(each(partial(dip_scores, detector, *s), size, first)) for s in settings]

    def alarms(detector: Callable[[Curve], Spans], first: int) -> int:
        return sum(sum(each(partial(healthy_alarm, detector, ar), count, first))
                   for ar in (0.0, 0.5))  # fmt: skip

    chosen: list[tuple[str, str, Callable[[Curve], Spans]]] = [
        ("find_dips, as it is", "-", ours),
        ("find_dips, accuracy alone", "-", partial(ours, samples="none")),
    ]
    for name, (detector, grid) in DIP_DETECTORS.items():
        ready = [partial(detector, k=k) for k in grid]
        tuned = [np.mean(scores(d, TUNING, count // 2)) for d in ready]
        best = int(np.argmax(tuned))
        chosen.append((f"{name}: best F1", f"{grid[best]:g}", ready[best]))
        quiet = [i for i, d in enumerate(ready) if alarms(d, TUNING) <= SILENT * 2 * count]
        if quiet and quiet[0] != best:
            chosen.append((f"{name}: 1 % false", f"{grid[quiet[0]]:g}", ready[quiet[0]]))
    rows = [
        [name, k, interval(alarms(detector, TESTING), 2 * count),
         *(f"{score:.3f}" for score in scores(detector, TESTING, count))]
        for name, k, detector in chosen
    ]  # fmt: skip
    head = [f"{100 * noise:g} points, AR {ar}" for noise, ar in settings]
    table(["detector", "k", "healthy runs that alarm", *head], rows)
