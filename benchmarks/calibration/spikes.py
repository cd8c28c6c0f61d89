"""Calibrate the detectors of spikes and stale moments on simulated series."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.calibration.scores import (
    TUNING,
    Each,
    Spans,
    f1,
    matched,
    per_steps,
    rolling_sigma,
    table,
    times_mean,
)  # fmt: skip
from stabkit.detect import find_spikes, find_stale_moments
from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate import simulate_norms


def our_spikes(values: FloatArray) -> Spans:
    found = find_spikes(np.arange(values.size), values)
    return list(zip(found["onset"].tolist(), found["end"].tolist(), strict=True))


SPIKE_PEERS: dict[str, tuple[Callable[..., Spans], Sequence[float], int]] = {
    "mean + k std of the last 128": (rolling_sigma, (6, 5, 4, 3), 128),
    "k times the mean of the last 128": (times_mean, (3, 2, 1.5, 5), 128),
}


def spike_scores(
    detector: Callable[[FloatArray], Spans], sigma: float, ar: float, seed: int
) -> tuple[int, int, int]:
    """Score the search for five spikes in 2,000 steps: 10 sigma high to 4 times as high."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(np.arange(3, 38), 5, replace=False)) * 50
    lowest = math.exp(10 * sigma)
    spikes = tuple(
        (int(t), float(np.exp(rng.uniform(math.log(lowest), math.log(4 * lowest)))), growth)
        for t, growth in zip(at, rng.integers(1, 6, 5).tolist(), strict=True)
    )
    values = simulate_norms(rng, steps=2000, sigma=sigma, ar=ar, spikes=spikes)
    return matched([(t - 5, t + 5) for t, _, _ in spikes], detector(values))


def healthy_spikes(
    detector: Callable[[FloatArray], Spans], sigma: float, ar: float, tails: float | None, seed: int
) -> int:
    rng = np.random.default_rng(seed)
    return len(detector(simulate_norms(rng, steps=10_000, sigma=sigma, ar=ar, tails=tails)))


def spike_tables(each: Each, runs: int) -> None:
    print("## Spikes: events in 10^5 healthy steps, and F1 with five spikes in 2,000\n")
    norms = [(0.1, 0.0, None), (0.3, 0.0, None), (0.3, 0.5, None), (0.3, 0.9, None),
             (0.5, 0.0, None), (0.3, 0.0, 5.0)]  # fmt: skip
    count = max(10, runs // 20)
    rows = []
    for name, detector in [("find_spikes", our_spikes)] + [
        (f"{name}, k = {grid[0]:g}", partial(rule, k=grid[0], window=window))
        for name, (rule, grid, window) in SPIKE_PEERS.items()
    ]:
        alarms = [sum(each(partial(healthy_spikes, detector, *norm), count)) for norm in norms]
        rows.append([name, *(per_steps(a, count * 10_000) for a in alarms)])
    table(["detector", *(f"sigma {s}, AR {a}" + (f", t({t:g})" if t else "")
                         for s, a, t in norms)], rows)  # fmt: skip
    settings = [(0.1, 0.0), (0.1, 0.5), (0.3, 0.0), (0.3, 0.5)]
    rows = []
    found = [f1(each(partial(spike_scores, our_spikes, *s), count)) for s in settings]
    rows.append(["find_spikes", "-", *(f"{score:.3f}" for score in found)])
    for name, (rule, grid, window) in SPIKE_PEERS.items():
        tuned = [
            f1(s for setting in settings for s in each(
                partial(spike_scores, partial(rule, k=k, window=window), *setting),
                count // 2, TUNING))
            for k in grid
        ]  # fmt: skip
        best = grid[int(np.argmax(tuned))]
        ready = partial(rule, k=best, window=window)
        found = [f1(each(partial(spike_scores, ready, *s), count)) for s in settings]
        rows.append([name, f"{best:g}", *(f"{score:.3f}" for score in found)])
    table(["detector", "k", *(f"sigma {s}, AR {a}" for s, a in settings)], rows)


FALLS = {"level": None, "10 times, 40 steps": (10.0, 40.0), "100 times, 100 steps": (100.0, 100.0)}


def on_a_fall(
    fall: tuple[float, float] | None, at: int, ratio: float, seed: int
) -> tuple[int, int]:
    """Return 1 if a spike of one step is found (0 for ratio 1), and the number of false alarms."""
    rng = np.random.default_rng(seed)
    spikes = ((at, ratio, 1),) if ratio > 1 else ()
    values = simulate_norms(rng, steps=500, sigma=0.1, ar=0.3, fall=fall, spikes=spikes)
    found = our_spikes(values)
    return sum(a <= at <= b for a, b in found), sum(not a <= at <= b for a, b in found)


def fall_tables(each: Each, runs: int) -> None:
    print("## Spikes on a falling level: false alarms in 10^5 steps, and share found\n")
    count = max(20, runs // 5)
    spikes = [(at, ratio) for at in (15, 30, 60, 300) for ratio in (2.0, 3.0, 5.0)]
    rows = []
    for name, fall in FALLS.items():
        alarms = sum(wrong for _, wrong in each(partial(on_a_fall, fall, -1, 1.0), count))
        found = [
            sum(hit for hit, _ in each(partial(on_a_fall, fall, *spike), count // 4))
            for spike in spikes
        ]
        rows.append([name, per_steps(alarms, count * 500),
                     *(f"{100 * hits / (count // 4):.0f}%" for hits in found)])  # fmt: skip
    table(["falls", "false alarms", *(f"step {at}, {ratio:g}x" for at, ratio in spikes)], rows)


def stale_moments(setting: tuple[float | None, float, float], elements: int, steps: int) -> int:
    """Return the number of events in one simulated healthy layer under Adam."""
    tail, common, beta2 = setting
    rng = np.random.default_rng([0, elements, int(beta2 * 1e4)])
    v, rms = np.zeros(elements), np.empty(steps)
    for t in range(steps):
        g = rng.standard_t(tail, elements) if tail else rng.standard_normal(elements)
        g *= np.exp(common * rng.standard_normal())
        v = beta2 * v + (1 - beta2) * g * g
        rms[t] = np.sqrt(np.mean(g * g / v) * (1 - beta2 ** (t + 1)))
    return len(find_stale_moments(np.arange(steps), rms, beta2))


def stale_tables(each: Each, runs: int) -> None:
    print("## Stale moments: events in 10^5 healthy steps\n")
    del each  # one long run for each cell
    sizes = {1: 50 * runs, 100: 50 * runs, 10_000: 10 * runs}
    rows = []
    kinds = [(None, 0.0), (5.0, 0.0), (3.0, 0.0), *((None, s) for s in (0.1, 0.2, 0.3, 0.4))]
    for tail, common in kinds:
        for beta2 in (0.95, 0.999):
            counts = [
                f"{stale_moments((tail, common, beta2), e, s) / s * 1e5:.0f}"
                for e, s in sizes.items()
            ]
            rows.append([f"t({tail:g})" if tail else "normal", f"{common:g}", f"{beta2}", *counts])
    table(["elements", "factor's sigma", "beta2", "1 element", "100 elements", "10,000 elements"],
          rows)  # fmt: skip
