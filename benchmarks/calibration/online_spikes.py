"""Calibrate spikes while a run trains: what is ever confirmed in healthy runs, and how late."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from benchmarks.calibration.bursts import BASES, BURSTS, drawn_of, length_rows, together
from benchmarks.calibration.losses import NOISES
from benchmarks.calibration.scores import TESTING, Each, delay_cells, interval, table
from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate import Burst
from stabkit.detect.simulate.layers import NAMES
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.events import OnlineEvent
from stabkit.monitor.react.watches import SpikeWatch

INTERVAL = 50  # steps that a Monitor hands over together
LENGTHS = {100: 1, 500: 1, 1_000: 1, 4_000: 2, 20_000: 8}  # steps -> how many times fewer runs
LOSS_LENGTHS = (2_000, 20_000)
STEPS = 500  # of the runs with a burst
LATE = 60  # steps after the begin of a burst, in which it may be confirmed


def online_spike_tables(each: Each, runs: int) -> str:
    """Return the tables of spikes found online; `runs` healthy runs of each kind of noise."""
    few = max(2, runs // 16)
    return "\n".join([
        "### Online spikes: healthy runs of 11 layers\n", false_alarms(each, runs),
        "### Online spikes: healthy losses\n", loss_alarms(each, max(2, runs // 4)),
        "### Online spikes: delay\n", delays(each, few),
    ])  # fmt: skip


def rows_of(norms: FloatArray, loss: FloatArray, begin: int, end: int) -> Rows:
    """Return the rows of these steps, as a Monitor hands them over."""
    part, steps = norms[begin:end], np.arange(begin, end)
    measured = {"grad_norm": np.ones(part.shape, dtype=bool)}
    return Rows(steps, NAMES, {"grad_norm": part}, measured, {"loss": (steps, loss[begin:end])})


def watched(norms: FloatArray, loss: FloatArray, cuts: Sequence[int]) -> list[OnlineEvent]:
    """Return the events found in rows that are handed over at these steps."""
    watch, found = SpikeWatch(), []
    for begin, end in zip([0, *cuts], [*cuts, len(norms)], strict=True):
        found += watch.rows(rows_of(norms, loss, begin, end))
    return found


def alarms(norms: FloatArray, loss: FloatArray) -> tuple[bool, bool]:
    """Tell whether a spike was ever suspected, and ever confirmed."""
    found = watched(norms, loss, range(INTERVAL, len(norms), INTERVAL))
    states = {event.state for event in found}
    return "suspected" in states, "confirmed" in states


def healthy_run(name: str, steps: int, seed: int) -> tuple[bool, bool, bool]:
    """Tell what was told of the layers online, and whether a burst counts afterwards."""
    drawn = drawn_of(name, seed, steps=steps)
    return *alarms(drawn.norms, np.ones(steps)), len(together(drawn)[1]) > 0


def healthy_loss(noise: str, steps: int, seed: int) -> tuple[bool, bool]:
    loss = NOISES[noise](np.random.default_rng(seed), steps)
    return alarms(np.ones((steps, len(NAMES))), loss)


def false_alarms(each: Each, runs: int) -> str:
    head = ["steps", "healthy layers", "runs", "ever suspected", "ever confirmed",
            "a burst that counts afterwards"]  # fmt: skip
    return table(head, length_rows(each, healthy_run, LENGTHS, runs))


def loss_alarms(each: Each, count: int) -> str:
    rows = []
    for noise in NOISES:
        for steps in LOSS_LENGTHS:
            seen = np.sum(each(partial(healthy_loss, noise, steps), count, TESTING), axis=0)
            rows.append([noise, f"{steps:,}", *(interval(int(n), count) for n in seen)])
    head = ["noise", "steps", "ever suspected", "ever confirmed"]
    return f"{count} runs a row.\n\n" + table(head, rows)


def delay(base: str, burst: Burst, seed: int) -> tuple[float, float]:
    """Return how many steps after its begin a burst was suspected and confirmed; NaN: it was not.

    From the burst on, a step is handed over at a time.
    """
    drawn = drawn_of(base, seed, burst, steps=STEPS)
    loss, last = np.ones(STEPS), burst.at + LATE
    watch, late = SpikeWatch(), {"suspected": np.nan, "confirmed": np.nan}
    cuts = [*range(0, burst.at, INTERVAL), *range(burst.at, last + 1)]
    for begin, end in pairwise(cuts):
        for event in watch.rows(rows_of(drawn.norms, loss, begin, end)):
            if event.step >= burst.at - 3:
                late[event.state] = np.fmin(late[event.state], end - 1 - burst.at)
    return late["suspected"], late["confirmed"]


def delays(each: Each, count: int) -> str:
    rows = []
    for base in BASES:
        for label, burst in BURSTS.items():
            late = np.array(each(partial(delay, base, burst), count, TESTING))
            rows.append([base, label, *delay_cells(late)])
    head = ["layers", "planted", "suspected", "steps later", "confirmed", "steps later"]
    return (
        f"{count} runs a row; steps since the burst began: median, 10 % to 90 %.\n\n"
        + table(head, rows)
    )  # fmt: skip
