"""Calibrate bursts and swells: events of several layers whose noise goes together."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from benchmarks.calibration.spikes import above_median
from stabkit.detect import find_bursts, find_spikes
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.layer_tails import bursts_that_stand_out
from stabkit.detect.simulate import Burst, SimulatedLayers, layers
from stabkit.detect.simulate.layers import NAMES
from stabkit.detect.swells import find_layer_swells

STEPS = 500
HEALTHY = ("stationary", "AR .5", "falls 10x in 40", "falls 100x in 40", "real_lr004", "real_lr016",
           "real_batch512", "warm-up rises 10x", "saw-tooth, every 50", "t5", "skewed",
           "t5, common", "skewed, common", "t3")  # fmt: skip
HEAVIEST = "t3"  # holds true outliers: it does not count for the sums
COMMON = {"together": 0.85, "neighbors": 0.95}  # what layers share
LONG = ("AR .5", "real_lr016", "real_batch512", "t5", "skewed", "skewed, common", HEAVIEST)
LENGTHS = {100: 1, 1_000: 1, 4_000: 2, 20_000: 8}  # steps -> how many times fewer runs
BASES = ("falls 10x in 40", "real_lr016", "real_batch512")
EVERY_LAYER = (0,) * len(NAMES)
TRAVELS = tuple(i // 2 for i in range(len(NAMES)))  # five steps from the first layer to the last
SHALLOW = (0, 0, 1, 2, *[None] * (len(NAMES) - 4))
FIRST_LAYER = (0, *[None] * (len(NAMES) - 1))
BURSTS = {
    "all layers at once, 3x, 1 step": Burst(330, 3.0, EVERY_LAYER),
    "all layers at once, 6x, tail 10": Burst(330, 6.0, EVERY_LAYER, tail=10.0),
    "all layers at once, 6x, grows 8, tail 10": Burst(330, 6.0, EVERY_LAYER, 8, 10.0),
    "through the layers in 5 steps, 6x, grows 3, tail 10": Burst(330, 6.0, TRAVELS, 3, 10.0),
    "the same, 17x": Burst(330, 17.0, TRAVELS, 3, 10.0),
    "early, at step 40, 6x, tail 10": Burst(40, 6.0, EVERY_LAYER, tail=10.0),
    "all layers at once, 200x, 1 step": Burst(330, 200.0, EVERY_LAYER),
    "first four layers, 6x, tail 10": Burst(330, 6.0, SHALLOW, tail=10.0),
    "first layer, 10x, 1 step": Burst(330, 10.0, FIRST_LAYER),
}
SWELLS = {
    "first four layers, 2x, 10 steps": Burst(250, 2.0, SHALLOW, lasts=10),
    "first four layers, 3x, 10 steps": Burst(250, 3.0, SHALLOW, lasts=10),
    "all layers, 2x, 10 steps": Burst(250, 2.0, EVERY_LAYER, lasts=10),
    "all layers, 2x, 20 steps, grows 4": Burst(250, 2.0, EVERY_LAYER, 4, lasts=20),
    "first layer, 3x, 10 steps": Burst(250, 3.0, FIRST_LAYER, lasts=10),
}
FAR = 3_000  # in runs of 4,000 steps
LONG_EVENTS = {
    "burst through the layers, 17x": Burst(FAR, 17.0, TRAVELS, 3, 10.0),
    "burst of all layers, 6x, tail 10": Burst(FAR, 6.0, EVERY_LAYER, tail=10.0),
    "burst of all layers, 200x, 1 step": Burst(FAR, 200.0, EVERY_LAYER),
    "burst of the first layer, 10x, 1 step": Burst(FAR, 10.0, FIRST_LAYER),
    "swell of the first four layers, 3x, 10 steps": Burst(FAR, 3.0, SHALLOW, lasts=10),
    "swell of all layers, 2x, 10 steps": Burst(FAR, 2.0, EVERY_LAYER, lasts=10),
}


def burst_tables(each: Each, runs: int) -> str:
    """Return the tables of bursts and swells; `runs` / 4 healthy runs for each series."""
    few = max(2, runs // 16)
    return "\n".join([
        f"### Bursts and swells: healthy runs of 11 layers and {STEPS} steps\n",
        false_alarms(each, max(2, runs // 4)),
        "### Bursts and swells: healthy runs of other lengths\n",
        false_alarms_by_length(each, max(8, runs // 4)),
        "### Bursts: what is found\n", burst_power(each, few),
        "### Swells: what is found\n", swell_power(each, few),
        "### Bursts and swells: what is found in 4,000 steps\n", long_power(each, few),
    ])  # fmt: skip


def drawn_of(name: str, seed: int, *bursts: Burst, steps: int = STEPS) -> SimulatedLayers:
    """Draw the layers of a row of the tables."""
    base = name.removesuffix(", common")
    return layers(seed, bursts, name=base, steps=steps, **(COMMON if base != name else {}))


def series(drawn: SimulatedLayers) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.arange(len(column)), column) for column in drawn.norms.T]


def joined(rows: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the bursts of the rows of each layer, which are spikes or swells."""
    named = [
        frame.assign(layer=name, depth=depth)
        for depth, (name, frame) in enumerate(zip(NAMES, rows, strict=True))
        if len(frame)
    ]
    return find_bursts(pd.concat(named, ignore_index=True)) if named else pd.DataFrame()


def alone(drawn: SimulatedLayers) -> pd.DataFrame:
    """Return the bursts of spikes that each layer shows by itself."""
    return joined([find_spikes(*one) for one in series(drawn)])


def together(drawn: SimulatedLayers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the bursts of spikes that layers show by themselves or many at once.

    Second: those that stand out from the tail of the layers, which `stabkit analyze` counts.
    """
    norms = series(drawn)
    spikes = find_layer_spikes(norms)
    kept = bursts_that_stand_out(norms, spikes)
    return joined(spikes), joined([s[counts] for s, counts in zip(spikes, kept, strict=True)])


def swelled(drawn: SimulatedLayers) -> pd.DataFrame:
    """Return the swells of all layers, as events of the run."""
    return joined(find_layer_swells(series(drawn)))


def total_median(drawn: SimulatedLayers) -> pd.DataFrame:
    """Return where the norm of all layers exceeds 6 times the median of its last 20."""
    whole = np.sqrt(np.sum(drawn.norms**2, axis=1))
    return pd.DataFrame(above_median(whole, 6.0), columns=["onset", "end"]).assign(layers=1)


def healthy_counts(name: str, steps: int, seed: int) -> tuple[bool, ...]:
    """Tell whether a healthy run has bursts: layer by layer, pooled, that count; swells; others."""
    drawn = drawn_of(name, seed, steps=steps)
    found = [alone(drawn), *together(drawn), swelled(drawn), total_median(drawn)]
    return tuple(len(events) > 0 for events in found)


def false_alarms(each: Each, count: int) -> str:
    rows, total = [], np.zeros(5, dtype=int)
    for name in HEALTHY:
        wrong = np.sum(each(partial(healthy_counts, name, STEPS), count, TESTING), axis=0)
        total += wrong * (name != HEAVIEST)
        rows.append([name, *(interval(int(w), count) for w in wrong)])
    runs = count * (len(HEALTHY) - 1)
    rows.append(["**all but t3**", *(interval(int(w), runs) for w in total)])
    head = ["healthy layers", "a burst, layer by layer", "a burst, pooled", "a burst that counts",
            "a swell", "whole norm above 6 times its median of 20"]  # fmt: skip
    return f"{count} runs a row.\n\n" + table(head, rows)


def long_counts(name: str, steps: int, seed: int) -> tuple[bool, ...]:
    """Tell whether a healthy run has bursts: pooled, that count; swells; one of the last two."""
    drawn = drawn_of(name, seed, steps=steps)
    pooled, counted, swells = (len(rows) > 0 for rows in (*together(drawn), swelled(drawn)))
    return pooled, counted, swells, counted or swells


def false_alarms_by_length(each: Each, count: int) -> str:
    head = ["steps", "healthy layers", "runs", "a burst, pooled", "a burst that counts",
            "a swell", "either of these two"]  # fmt: skip
    return table(head, length_rows(each, long_counts, LENGTHS, count))


def length_rows(
    each: Each, counts: Callable[..., tuple[bool, ...]], lengths: dict[int, int], count: int
) -> list[list[str]]:
    """Return a row for each length and noise, and a row for each length without t3.

    `counts(name, steps, seed)` tells what a healthy run has.
    """
    rows = []
    for steps, fewer in lengths.items():
        some = max(2, count // fewer)
        seen = {
            name: np.sum(each(partial(counts, name, steps), some, TESTING), axis=0) for name in LONG
        }
        for name, found in seen.items():
            rows.append([f"{steps:,}", name, str(some), *(interval(int(n), some) for n in found)])
        total = np.sum([found for name, found in seen.items() if name != HEAVIEST], axis=0)
        runs = some * (len(LONG) - 1)
        rows.append(
            [f"{steps:,}", "**all but t3**", f"{runs:,}", *(interval(int(n), runs) for n in total)]
        )
    return rows


def near(events: pd.DataFrame, burst: Burst) -> int:
    """Return how many layers the event near the planted one has; 0: none is near."""
    if not len(events):
        return 0
    last = burst.at + burst.growth + burst.lasts + 8
    at = events[(events["end"] >= burst.at - 3) & (events["onset"] <= last)]
    return int(at["layers"].max()) if len(at) else 0


def burst_found(base: str, burst: Burst, seed: int) -> tuple[int, ...]:
    drawn = drawn_of(base, seed, burst)
    found = [alone(drawn), *together(drawn), total_median(drawn)]
    return tuple(near(events, burst) for events in found)


def swell_found(base: str, steps: int, burst: Burst, seed: int) -> tuple[int, int]:
    drawn = drawn_of(base, seed, burst, steps=steps)
    return near(together(drawn)[1], burst), near(swelled(drawn), burst)


def burst_power(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in BURSTS.items():
            found = np.array(each(partial(burst_found, base, burst), count, TESTING))
            rows.append([base, label, *(percent(int(n), count) for n in (found > 0).sum(axis=0)),
                         f"{np.median(found[:, 2]):.0f}"])  # fmt: skip
    head = ["layers", "planted", "layer by layer", "pooled", "counts",
            "whole norm above 6 times its median", "layers in the burst, median"]  # fmt: skip
    return f"{count} runs a row.\n\n" + table(head, rows)


def swell_power(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in SWELLS.items():
            found = np.array(each(partial(swell_found, base, STEPS, burst), count, TESTING))
            rows.append([base, label, *(percent(int(n), count) for n in (found > 0).sum(axis=0)),
                         f"{np.median(found[:, 1]):.0f}"])  # fmt: skip
    head = ["layers", "planted", "as a burst", "as a swell", "layers in the swell, median"]
    return f"{count} runs a row.\n\n" + table(head, rows)


def long_power(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in LONG_EVENTS.items():
            found = np.array(each(partial(swell_found, base, 4_000, burst), count, TESTING))
            hits = [*(found > 0).sum(axis=0), (found > 0).any(axis=1).sum()]
            rows.append([base, label, *(percent(int(n), count) for n in hits)])
    head = ["layers", "planted", "as a burst that counts", "as a swell", "as either"]
    return f"{count} runs a row.\n\n" + table(head, rows)
