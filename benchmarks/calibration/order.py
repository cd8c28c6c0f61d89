"""Calibrate the dating of spikes, the joining of layers to bursts, and the order of layers.

Norms of eleven layers that fall to a tenth in the first steps and share most of their noise. At
three steps of each run an event is planted; `CASES` says in which layers, when and how.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.calibration.scores import interval
from stabkit.detect import find_spikes, layer_onsets, shallow_first
from stabkit.detect.bursts import GAP
from stabkit.detect.onset_order import OrderTest, first_in_bursts
from stabkit.detect.onsets import half_height_onset
from stabkit.detect.robust import MAD_TO_STD, FloatArray
from stabkit.detect.simulate.layers import NAMES, Burst, layers

STEPS, EVENTS = 500, (180, 300, 400)
FIRST, LAST = NAMES[0], NAMES[-1]
RATIO, TAIL = 6.0, 20.0
BAR = 6.8  # deviations at which a slow rise counts as flagged
JOIN_RUNS = 40  # of a few thousand steps

CASES: Mapping[str, Mapping[str, Any]] = {
    "all layers at once": {},
    "the patch projection half as noisy": {"noise": 0.5},
    "the last layer 3 later": {"last": 3},
    "the last layer 10 later": {"last": 10},
    "the last layer 20 later": {"last": 20},
    "the last layer 40 later": {"last": 40},
    "first and last alone, 5 later": {"last": 5, "ends": True},
    "first and last alone, 20 later": {"last": 20, "ends": True},
    "first and last alone, 40 later": {"last": 40, "ends": True},
    "recorded noise, the patch projection half as noisy": {"noise": 0.5, "name": "real_lr004"},
    "recorded noise, the last layer 20 later": {"last": 20, "name": "real_lr004"},
    "rise over 15 steps": {"rise": 15},
    "rise over 15, patch half as noisy": {"rise": 15, "noise": 0.5},
    "rise over 15, patch twice as noisy": {"rise": 15, "noise": 2.0},
    "rise over 15, recorded noise, patch half as noisy": {
        "rise": 15,
        "noise": 0.5,
        "name": "real_lr004",
    },
    "rise over 15, patch 1.5 times as high": {"rise": 15, "height": 1.5},
    "rise over 15, patch half as noisy, last 4 earlier": {"rise": 15, "noise": 0.5, "last": -4},
}
UNORDERED = [name for name, case in CASES.items() if not case.get("last")]


def simulated(
    seed: int,
    *,
    name: str = "falls 10x in 40",
    last: int = 0,
    ends: bool = False,
    rise: int = 1,
    noise: float = 1.0,
    height: float = 1.0,
) -> FloatArray:
    """Simulate gradient norms [steps, layers] with planted events (`stabkit.detect.simulate`).

    Each event multiplies the norms of all layers, or of both `ends` alone, by up to `RATIO`,
    geometrically over `rise` steps. `last` is by how many steps the last layer is later. `noise`
    and `height` (of the logarithm) are those of the patch projection over those of the others.
    """
    others = len(NAMES) - 1
    lags = (0, *[None if ends else 0] * (others - 1), last)
    heights = (height, *[1.0] * others)
    bursts = tuple(Burst(at, RATIO, lags, rise, TAIL, heights) for at in EVENTS)
    return layers(seed, bursts, name=name, steps=STEPS, noise=(noise, *[1.0] * others)).norms


def by_detector(norms: FloatArray) -> pd.DataFrame:
    """Return what `find_spikes` finds in every layer."""
    found = [
        find_spikes(np.arange(STEPS), norms[:, i]).assign(layer=name, depth=i)
        for i, name in enumerate(NAMES)
    ]
    return pd.concat([table for table in found if len(table)] or found[:1], ignore_index=True)


def by_crossing(norms: FloatArray) -> pd.DataFrame:
    """Return the planted events, flagged where they pass `BAR` deviations above their own level.

    `find_spikes` sees few rises over 15 steps; this dates them as a detector would that sees all.
    """
    rows = []
    for depth, name in enumerate(NAMES):
        logs = np.log(norms[:, depth])
        for at in EVENTS:
            before = logs[at - 45 : at - 10]
            level = np.median(before)
            bar = level + BAR * MAD_TO_STD * np.median(np.abs(before - level))
            over = np.flatnonzero(logs[at - 5 : at + 20] >= bar)
            if over.size:
                first = at - 5 + int(over[0])
                peak = first + int(logs[first : first + 30].argmax())
                onset = half_height_onset(np.arange(STEPS), logs, first, peak)
                rows.append((name, depth, onset, first, peak, RATIO))
    return pd.DataFrame(rows, columns=["layer", "depth", "onset", "flagged", "end", "ratio"])


def planted(case: Mapping[str, Any], runs: int, seed: int) -> list[pd.DataFrame]:
    """Return the spikes of each simulated run."""
    find = by_crossing if case.get("rise", 1) > 1 else by_detector
    return [find(simulated(seed + i, **case)) for i in range(runs)]


def joined(runs: Iterable[pd.DataFrame], date: str = "onset") -> pd.DataFrame:
    """Return the rows of `layer_onsets` of the runs' spikes, dated by a column."""
    return pd.concat(
        [layer_onsets(run.assign(onset=run[date])).assign(run=i) for i, run in enumerate(runs)],
        ignore_index=True,
    )


def order_table(runs: int, seed: int) -> str:
    """Return what is told of every planted case, dated at half height and by the first flag."""
    rows = []
    for name, case in CASES.items():
        spikes = planted(case, runs, seed)
        found = joined(spikes)
        test = shallow_first(found, FIRST, LAST)
        old = shallow_first(joined(spikes, "flagged"), FIRST, LAST)
        lead = first_in_bursts(found, FIRST)
        rows.append([
            name, f"{test.events} of {len(EVENTS) * runs}", _lag(old), _lag(test),
            f"{test.before} / {test.after} / {test.ties}", test.order,
            f"{lead.first:.1f} of {lead.expected:.1f}", "yes" if lead.leads else "no",
        ])  # fmt: skip
    head = ["planted", "events with both", "lag by the first flagged step", "lag at half height",
            "before / after / tied", "order told", "patch projection leads, by chance",
            "told"]  # fmt: skip
    return _markdown(head, rows)


def false_order_table(sets: int, seed: int, runs: int = 8) -> str:
    """Return how often an order is told where there is none, over data sets of a few runs."""
    rows = []
    for name in UNORDERED:
        old = new = led = 0
        for i in range(sets):
            spikes = planted(CASES[name], runs, seed + i * runs)
            found = joined(spikes)
            new += shallow_first(found, FIRST, LAST).order != "undecided"
            by_flag = shallow_first(joined(spikes, "flagged"), FIRST, LAST)
            old += by_flag.order != "undecided"
            led += first_in_bursts(found, FIRST).leads
        rows.append([name, *(interval(told, sets) for told in (old, new, led))])
    head = [f"nothing is ordered ({len(EVENTS) * runs} events)", "told by the first flagged step",
            "told at half height", "patch projection leads"]  # fmt: skip
    return _markdown(head, rows)


def lag_table(sets: int, seed: int, runs: int = 4) -> str:
    """Return how often the interval of the lag covers the truth and the right order is told."""
    rows = []
    for name, case in CASES.items():
        if name in UNORDERED:
            continue
        found = [joined(planted(case, runs, seed + runs * i)) for i in range(sets)]
        tests = [shallow_first(onsets, FIRST, LAST) for onsets in found]
        truth = case["last"]
        kept = sum(test.low <= truth <= test.high for test in tests)
        told = sum(test.order == ("shallow first" if truth > 0 else "deep first") for test in tests)
        rows.append([name, interval(kept, sets), interval(told, sets)])
    head = [f"{len(EVENTS) * runs} events", "interval covers", "right order told"]
    return _markdown(head, rows)


Spikes = list[list[tuple[int, int]]]  # of each event its layers and steps


def joining_table(seed: int) -> str:
    """Return how often unrelated spikes are joined and planted events recovered, by spacing."""

    def at(rng: np.random.Generator, mean: float, least: int = 1) -> list[int]:
        return np.cumsum(np.maximum(rng.exponential(mean, 25), least)).astype(int).tolist()

    def alone(rng: np.random.Generator, mean: float) -> Spikes:
        return [[(int(rng.integers(len(NAMES))), t)] for t in at(rng, mean)]

    def several(rng: np.random.Generator, mean: float) -> Spikes:
        return [
            [(int(layer), t + int(rng.integers(6)))
             for layer in rng.permutation(len(NAMES))[: rng.integers(3, 9)]]
            for t in at(rng, mean, 12)
        ]  # fmt: skip

    def pair(lag: int) -> Callable[[np.random.Generator, float], Spikes]:
        both = (0, 0), (len(NAMES) - 1, lag)
        return lambda rng, mean: [
            [(layer, t + late) for layer, late in both] for t in at(rng, mean, lag + 15)
        ]

    kinds: dict[str, Callable[[np.random.Generator, float], Spikes]] = {
        "one layer alone, any of 11": alone,
        "3 to 8 layers within 5 steps": several,
        "first and last, lag 20": pair(20),
        "first and last, lag 40": pair(40),
    }
    rows = []
    for name, make in kinds.items():
        for mean in (20, 50, 100, 200):
            shares = []
            for gap in (10, GAP):
                right = total = 0
                for i in range(JOIN_RUNS):
                    events = make(np.random.default_rng(seed + i), mean)
                    right, total = right + _recovered(events, gap), total + len(events)
                shares.append(f"{right / total:.0%}")
            rows.append([name, f"{mean}", *shares])
    return _markdown(["events", "mean steps apart", "whole with gap 10", f"gap {GAP}"], rows)


def joined_order_table(sets: int, seed: int) -> str:
    """Return how often an order is told of spikes of single layers that chance alone joins."""
    rows = []
    for mean in (20, 50, 100):
        told = counted = 0
        for i in range(sets):
            rng = np.random.default_rng(seed + i)
            steps = np.flatnonzero(rng.random(20 * mean) < 1 / mean)
            test = shallow_first(layer_onsets(_table([[(int(rng.integers(len(NAMES))), int(t))]
                                                      for t in steps])))  # fmt: skip
            told, counted = told + (test.order != "undecided"), counted + test.events
        rows.append([f"{mean}", f"{counted / sets:.1f}", interval(told, sets)])
    return _markdown(["mean steps apart", "bursts of several layers", "order told"], rows)


def _table(events: Spikes) -> pd.DataFrame:
    rows = sorted({pair for event in events for pair in event})
    table = pd.DataFrame(rows, columns=["depth", "onset"])
    return table.assign(layer=[NAMES[i] for i in table["depth"]], end=table["onset"], ratio=6.0)


def _recovered(events: Spikes, gap: int) -> int:
    """Return how many events are bursts: all of their layers, and nothing else."""
    found = layer_onsets(_table(events), gap)
    bursts = {
        frozenset(zip(burst["depth"], burst["onset"], strict=True))
        for _, burst in found.groupby("burst")
    }
    return sum(frozenset(event) in bursts for event in events)


def _lag(test: OrderTest) -> str:
    return f"{test.lag:g} ({test.low:g} to {test.high:g})"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
