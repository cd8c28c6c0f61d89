"""Calibrate `find_spikes`: false alarms and power, beside the rules that trainers use."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.calibration.scores import (
    TESTING,
    TUNING,
    Each,
    Spans,
    merged,
    per_steps,
    table,
)
from stabkit.detect import find_spikes
from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate import NORMS, Spike, norms

STEPS = 500
NEAR = (3, 4)  # a hit begins at most so many steps before or after the first raised step
Rule = Callable[[FloatArray], Spans]

# A level shift is an event, and heavy tails hold true outliers: the bar is not set on them.
POOL = tuple(name for name in NORMS if name not in ("level shift 3x", "t3"))
BASES = ("stationary", "falls 10x in 40", "falls 100x in 40", "real_lr004", "real_lr016")
KINDS = {
    "3x": Spike(0, 3.0),
    "5x": Spike(0, 5.0),
    "10x": Spike(0, 10.0),
    "5x, tail 30": Spike(0, 5.0, 1, 30.0),
    "5x, grows 8, tail 30": Spike(0, 5.0, 8, 30.0),
    "5x, grows 15, tail 30": Spike(0, 5.0, 15, 30.0),
}
PLACES = (15, 30, 60, 100, 300)


def ours(values: FloatArray) -> Spans:
    """Find spikes as the library does."""
    found = find_spikes(np.arange(values.size), values)
    return list(zip(found["onset"].tolist(), found["end"].tolist(), strict=True))


def above_median(values: FloatArray, k: float) -> Spans:
    """Flag values above k times the median of the last 20."""
    median = np.median(sliding_window_view(values, 20)[:-1], axis=1)
    return merged((int(i), int(i)) for i in 20 + np.flatnonzero(values[20:] > k * median))


def above_sigma(values: FloatArray, k: float) -> Spans:
    """Flag values above mean + k standard deviations of the last 128, or of all so far from 20."""
    count = np.arange(1, values.size + 1)
    sums, squares = np.cumsum(values), np.cumsum(values**2)
    older = np.concatenate([np.zeros(128), sums])[: values.size]
    older_squares = np.concatenate([np.zeros(128), squares])[: values.size]
    held = np.minimum(count, 128)
    mean = (sums - older) / held
    std = np.sqrt(np.maximum((squares - older_squares) / held - mean**2, 0))
    flags = np.flatnonzero(values[20:] > mean[19:-1] + k * std[19:-1]) + 20
    return merged((int(i), int(i)) for i in flags)


TRAINERS: dict[str, tuple[Callable[[FloatArray, float], Spans], float, Sequence[float]]] = {
    # name -> rule, the k that trainers use, from eager to silent
    "k times the median of the last 20": (above_median, 6.0, (2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 14)),
    "mean + k std of the last 128": (above_sigma, 6.0, (3, 4, 5, 6, 7, 8, 10, 13, 17, 25)),
}


def spike_tables(each: Each, runs: int) -> str:
    """Return the tables of `find_spikes`; `runs` / 3 series of 500 steps for each scenario."""
    count = max(2, runs // 3)
    ready = rules(each, count)
    return "\n".join([
        "### Spikes: events in 10^5 healthy steps\n", false_alarms(each, ready, count),
        "### Spikes: what is found\n", power(each, ready, max(2, runs // 15)),
    ])  # fmt: skip


def rules(each: Each, count: int) -> dict[str, Rule]:
    """Return all rules: ours, the trainers' as they are, and those at as many false alarms."""
    pooled = sum(alarms(each, ours, name, count, TUNING) for name in POOL)
    ready: dict[str, Rule] = {"find_spikes": ours}
    for name, (rule, usual, _) in TRAINERS.items():
        ready[name.replace("k", f"{usual:g}", 1)] = partial(rule, k=usual)
    for name, (rule, _, bars) in TRAINERS.items():
        for k in bars:
            quiet = partial(rule, k=k)
            if sum(alarms(each, quiet, n, count, TUNING) for n in POOL) <= pooled:
                ready[f"{name.replace('k', f'{k:g}', 1)}, equal alarms"] = quiet
                break
    return ready


def healthy_events(rule: Rule, name: str, seed: int) -> int:
    return len(rule(norms(name, seed, steps=STEPS)))


def alarms(each: Each, rule: Rule, name: str, count: int, first: int) -> int:
    return int(sum(each(partial(healthy_events, rule, name), count, first)))


def false_alarms(each: Each, ready: dict[str, Rule], count: int) -> str:
    rows = []
    total = np.zeros(len(ready), dtype=int)
    for name in NORMS:
        found = [alarms(each, rule, name, count, TESTING) for rule in ready.values()]
        total += np.array(found) * (name in POOL)
        rows.append([name, *(per_steps(events, count * STEPS) for events in found)])
    rows.append(["**all but t3 and level shift**",
                 *(per_steps(int(e), count * STEPS * len(POOL)) for e in total)])  # fmt: skip
    return f"{count} series of {STEPS} steps a row.\n\n" + table(["healthy series", *ready], rows)


def hit(rule: Rule, base: str, spike: Spike, seed: int) -> bool:
    """Tell whether a planted spike is found near its first raised step, or while it rises."""
    spans = rule(norms(base, seed, (spike,), steps=STEPS))
    latest = spike.at + spike.growth - 1 + NEAR[1]
    return any(spike.at - NEAR[0] <= onset <= latest for onset, _ in spans)


def power(each: Each, ready: dict[str, Rule], count: int) -> str:
    rows = []
    for base in BASES:
        for label, kind in KINDS.items():
            cells = []
            for rule in ready.values():
                shares = []
                for at in PLACES:
                    spike = Spike(at, kind.ratio, kind.growth, kind.tail)
                    found = each(partial(hit, rule, base, spike), count, TESTING + 500_000)
                    shares.append(f"{100 * np.mean(found):.0f}")
                cells.append(" ".join(shares))
            rows.append([base, label, *cells])
    where = ", ".join(str(at) for at in PLACES)
    return f"Percent of {count} spikes that are found, at steps {where}.\n\n" + table(
        ["series", "spike", *ready], rows
    )
