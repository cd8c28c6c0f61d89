"""Rules that look for dips in an accuracy: ours, and others with one bar each.

A rule takes a run and the bar `k` and returns spans of evaluations. All others see the accuracy
alone; their unit is the noise of neighbors' differences.
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import pandas as pd
from scipy import signal

from benchmarks.calibration.scores import Spans, merged
from stabkit.detect import find_dips
from stabkit.detect.dip_search import strength
from stabkit.detect.robust import difference_scale
from stabkit.detect.simulate import SimulatedCurve

Rule = Callable[[SimulatedCurve, float], Spans]
LEAST_NOISE = 1e-3
NO_PELT = "The package ruptures is not installed (extra `bench`), so PELT is left out."


def ours(curve: SimulatedCurve, k: float = 1.0) -> Spans:
    """Find dips from the bits, at `k` times the default bar."""
    return _found(curve, k, {"correct": curve.correct})


def ours_without_bits(curve: SimulatedCurve, k: float = 1.0) -> Spans:
    """Find dips from the accuracy alone, at `k` times the default bar."""
    return _found(curve, k, {})


def clearest(curve: SimulatedCurve) -> float:
    """Return how many times the default bar the clearest dip reaches; 0 without a dip."""
    return max(_strengths(find_dips(curve.step, curve.accuracy, correct=curve.correct)), default=0)


def _strengths(found: pd.DataFrame) -> list[float]:
    ar, bar = found.attrs["ar"], found.attrs["threshold"]
    return [strength(z, fall, ar, bar) for z, fall in found[["z", "fall"]].to_numpy()]


def _found(curve: SimulatedCurve, k: float, known: dict[str, object]) -> Spans:
    found = find_dips(curve.step, curve.accuracy, **known)  # type: ignore[arg-type]
    # Not by `threshold`, which would switch off the rule of the run's own falls.
    found = found[np.array(_strengths(found)) >= k]
    ends = found["recovery"].fillna(curve.step[-1] + 1)
    first = np.searchsorted(curve.step, found["onset"], side="right")
    last = np.searchsorted(curve.step, ends, side="left") - 1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def peaks(curve: SimulatedCurve, k: float) -> Spans:
    """Apply scipy's find_peaks to the inverted curve: prominence k noises, width 2 or more."""
    _, shown = signal.find_peaks(
        -curve.accuracy, prominence=k * _noise(curve), width=2, rel_height=0.8
    )
    return merged(
        (math.ceil(a), math.floor(b))
        for a, b in zip(shown["left_ips"], shown["right_ips"], strict=True)
    )


def pelt(curve: SimulatedCurve, k: float) -> Spans:
    """Apply ruptures' PELT (l2, penalty k s^2 ln T): segments a point below the one before."""
    import ruptures

    model = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(curve.accuracy)
    ends = model.predict(pen=k * _noise(curve) ** 2 * math.log(curve.accuracy.size))
    begins = [0, *ends[:-1]]
    means = [curve.accuracy[a:b].mean() for a, b in zip(begins, ends, strict=True)]
    return [(begins[i], ends[i] - 1) for i in range(1, len(ends)) if means[i] < means[i - 1] - 0.01]


def cusum(curve: SimulatedCurve, k: float) -> Spans:
    """Sum how far values lie more than half a noise below the mean of the 20 before (Page 1954).

    A dip begins where the sum left 0 before it passed k noises, and ends where the sum has halved.
    """
    noise, total, begin, high = _noise(curve), 0.0, 0, 0.0
    flags: Spans = []
    for i in range(3, curve.accuracy.size):
        before = curve.accuracy[max(0, i - 20) : i].mean()
        total = max(0.0, total + (before - curve.accuracy[i]) / noise - 0.5)
        if total == 0.0:
            begin, high = i + 1, 0.0
        high = max(high, total)
        if total >= k and total >= high / 2:
            flags.append((begin, i))
    return merged(flags)


def trailing_mean(curve: SimulatedCurve, k: float) -> Spans:
    """Flag evaluations more than k noises below the mean of the 10 before."""
    noise = _noise(curve)
    flags = [
        (i, i)
        for i in range(3, curve.accuracy.size)
        if curve.accuracy[i] < curve.accuracy[max(0, i - 10) : i].mean() - k * noise
    ]
    return merged(flags)


def _noise(curve: SimulatedCurve) -> float:
    return max(difference_scale(curve.accuracy), LEAST_NOISE)


OURS: dict[str, Rule] = {"find_dips, bits": ours, "find_dips, accuracy alone": ours_without_bits}
OUR_BARS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5)  # multiples of the default
OTHERS: dict[str, tuple[Rule, Sequence[float]]] = {
    "scipy find_peaks, prominence": (peaks, (4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25)),
    "ruptures PELT l2, penalty": (pelt, (3, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60)),
    "CUSUM": (cusum, (6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 180)),
    "below the mean of 10": (trailing_mean, (3, 4, 5, 6, 7, 8, 10, 12, 15, 20)),
}


def others() -> dict[str, tuple[Rule, Sequence[float]]]:
    """Return the other rules that can run here."""
    return {name: rule for name, rule in OTHERS.items() if rule[0] is not pelt or has_pelt()}


def has_pelt() -> bool:
    return find_spec("ruptures") is not None
