"""Calibrate bursts and swells: events of several layers whose noise goes together."""

from functools import partial

import numpy as np
import pandas as pd

from benchmarks.calibration.scores import TESTING, Each, interval, per_steps, percent, table
from benchmarks.calibration.spikes import above_median
from stabkit.detect import find_bursts, find_spikes
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.simulate import Burst, Layers, layers
from stabkit.detect.simulate.layers import NAMES
from stabkit.detect.swells import find_layer_swells

STEPS = 500
HEALTHY = ("stationary", "AR .5", "falls 10x in 40", "falls 100x in 40", "real_lr004", "real_lr016",
           "real_batch512", "warm-up rises 10x", "saw-tooth, every 50", "t5", "skewed")  # fmt: skip
BASES = ("falls 10x in 40", "real_lr016", "real_batch512")
EVERY_LAYER = (0,) * len(NAMES)
TRAVELS = tuple(i // 2 for i in range(len(NAMES)))  # five steps from the first layer to the last
SHALLOW = (0, 0, 1, 2, *[None] * (len(NAMES) - 4))
BURSTS = {
    "all layers at once, 3x, 1 step": Burst(330, 3.0, EVERY_LAYER),
    "all layers at once, 6x, tail 10": Burst(330, 6.0, EVERY_LAYER, tail=10.0),
    "all layers at once, 6x, grows 8, tail 10": Burst(330, 6.0, EVERY_LAYER, 8, 10.0),
    "through the layers in 5 steps, 6x, grows 3, tail 10": Burst(330, 6.0, TRAVELS, 3, 10.0),
    "the same, 17x": Burst(330, 17.0, TRAVELS, 3, 10.0),
    "early, at step 40, 6x, tail 10": Burst(40, 6.0, EVERY_LAYER, tail=10.0),
}
SWELLS = {
    "first four layers, 2x, 10 steps": Burst(250, 2.0, SHALLOW, lasts=10),
    "first four layers, 3x, 10 steps": Burst(250, 3.0, SHALLOW, lasts=10),
    "all layers, 2x, 10 steps": Burst(250, 2.0, EVERY_LAYER, lasts=10),
    "all layers, 2x, 20 steps, grows 4": Burst(250, 2.0, EVERY_LAYER, 4, lasts=20),
    "first layer, 3x, 10 steps": Burst(250, 3.0, (0, *[None] * (len(NAMES) - 1)), lasts=10),
}


def burst_tables(each: Each, runs: int) -> str:
    """Return the tables of bursts and swells; `runs` / 4 healthy runs for each series."""
    return "\n".join([
        "### Bursts and swells: healthy runs of 11 layers and 500 steps\n",
        false_alarms(each, max(2, runs // 4)),
        "### Bursts: what is found\n", burst_power(each, max(2, runs // 16)),
        "### Swells: what is found\n", swell_power(each, max(2, runs // 16)),
    ])  # fmt: skip


def series(drawn: Layers) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.arange(len(column)), column) for column in drawn.norms.T]


def joined(rows: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the bursts of the rows of each layer, which are spikes or swells."""
    named = [
        frame.assign(layer=name, depth=depth)
        for depth, (name, frame) in enumerate(zip(NAMES, rows, strict=True))
        if len(frame)
    ]
    return find_bursts(pd.concat(named, ignore_index=True)) if named else pd.DataFrame()


def alone(drawn: Layers) -> pd.DataFrame:
    """Return the bursts of spikes that each layer shows by itself."""
    return joined([find_spikes(*one) for one in series(drawn)])


def together(drawn: Layers) -> pd.DataFrame:
    """Return the bursts of spikes that layers show by themselves or many at once."""
    return joined(find_layer_spikes(series(drawn)))


def swelled(drawn: Layers) -> pd.DataFrame:
    """Return the swells of all layers, as events of the run."""
    return joined(find_layer_swells(series(drawn)))


def total_median(drawn: Layers) -> pd.DataFrame:
    """Return where the norm of all layers exceeds 6 times the median of its last 20."""
    whole = np.sqrt(np.sum(drawn.norms**2, axis=1))
    return pd.DataFrame(above_median(whole, 6.0), columns=["onset", "end"]).assign(layers=1)


def healthy_counts(name: str, seed: int) -> tuple[int, int, int, int]:
    drawn = layers(seed, name=name, steps=STEPS)
    found = [alone(drawn), together(drawn), swelled(drawn), total_median(drawn)]
    return tuple(len(events) for events in found)  # type: ignore[return-value]


def false_alarms(each: Each, count: int) -> str:
    rows, total = [], np.zeros(3, dtype=int)
    for name in HEALTHY:
        found = np.array(each(partial(healthy_counts, name), count, TESTING))
        events, wrong = found.sum(axis=0), (found[:, 1:3] > 0).sum(axis=0)
        total += [count, *wrong]
        rows.append([name, *(per_steps(int(e), count * STEPS) for e in events),
                     *(interval(w, count) for w in wrong)])  # fmt: skip
    rows.append(["**all**", *["-"] * 4, *(interval(w, total[0]) for w in total[1:])])
    head = ["healthy layers", "bursts, layer by layer", "bursts, pooled", "swells",
            "whole norm above 6 times its median of 20", "runs with a burst, pooled",
            "runs with a swell"]  # fmt: skip
    return f"{count} runs a row; events in 10^5 steps of a run.\n\n" + table(head, rows)


def near(events: pd.DataFrame, burst: Burst) -> int:
    """Return how many layers the event near the planted one has; 0: none is near."""
    if not len(events):
        return 0
    last = burst.at + burst.growth + burst.lasts + 8
    at = events[(events["end"] >= burst.at - 3) & (events["onset"] <= last)]
    return int(at["layers"].max()) if len(at) else 0


def burst_found(base: str, burst: Burst, seed: int) -> tuple[int, int, int]:
    drawn = layers(seed, (burst,), name=base, steps=STEPS)
    return near(alone(drawn), burst), near(together(drawn), burst), near(total_median(drawn), burst)


def swell_found(base: str, burst: Burst, seed: int) -> tuple[int, int]:
    drawn = layers(seed, (burst,), name=base, steps=STEPS)
    return near(together(drawn), burst), near(swelled(drawn), burst)


def burst_power(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in BURSTS.items():
            found = np.array(each(partial(burst_found, base, burst), count, TESTING))
            rows.append([base, label, *(percent(int(n), count) for n in (found > 0).sum(axis=0)),
                         f"{np.median(found[:, 1]):.0f}"])  # fmt: skip
    head = ["layers", "planted", "layer by layer", "pooled",
            "whole norm above 6 times its median", "layers in the burst, median"]  # fmt: skip
    return f"{count} runs a row.\n\n" + table(head, rows)


def swell_power(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in SWELLS.items():
            found = np.array(each(partial(swell_found, base, burst), count, TESTING))
            rows.append([base, label, *(percent(int(n), count) for n in (found > 0).sum(axis=0)),
                         f"{np.median(found[:, 1]):.0f}"])  # fmt: skip
    head = ["layers", "planted", "as a spike", "as a swell", "layers in the swell, median"]
    return f"{count} runs a row.\n\n" + table(head, rows)
