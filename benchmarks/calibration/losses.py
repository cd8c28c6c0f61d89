"""Measure how often a healthy loss has a spike that counts, and which planted spikes count."""

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, interval, table
from stabkit.analyze.loss_events import lasts_or_is_large
from stabkit.detect import find_spikes
from stabkit.detect.loss_tail import rose, spikes_that_stand_out
from stabkit.detect.robust import FloatArray
from stabkit.detect.spikes import usable_series

BATCH = 128  # samples, whose losses are log-normal, wider as training goes on
Noise = Callable[[np.random.Generator, int], FloatArray]


def student(tail: float, size: float, rng: np.random.Generator, steps: int) -> FloatArray:
    """Return a falling loss, as of a language model, with relative noise of standard `size`."""
    level = 2.6 + 2.2 * (1 + np.arange(steps) / max(20.0, 0.005 * steps)) ** -0.45
    noise = rng.standard_t(tail, steps) / np.sqrt(tail / (tail - 2))
    return np.asarray(level * np.exp(size * noise))


def of_batches(rng: np.random.Generator, steps: int) -> FloatArray:
    """Return the mean loss of batches of a classifier, of which few samples remain hard."""
    done = np.sqrt(np.linspace(0, 1, steps))
    loss = [
        np.exp(0.6 - 4.6 * x + (0.7 + 1.5 * x) * rng.standard_normal(BATCH)).mean() for x in done
    ]
    return np.array(loss)


NOISES: dict[str, Noise] = {
    "nearly normal, 3 %": partial(student, 200.0, 0.03),
    "t5, 3 %": partial(student, 5.0, 0.03),
    "t5, 10 %": partial(student, 5.0, 0.1),
    "t3, 3 %": partial(student, 3.0, 0.03),
    f"mean of {BATCH} log-normal losses": of_batches,
}
DROPS = (2.0, 4.0, 10.0, 30.0)
LENGTHS = (2_000, 20_000, 100_000)
PLANTED = [(times, length) for times in (1.5, 2.0) for length in (1, 3, 10)]  # values


def loss_tables(each: Each, runs: int) -> str:
    """Return the tables; a tenth of `runs` runs a row, since losses are long."""
    few = max(4, runs // 10)
    healthy, planted = [], []
    for noise in NOISES:
        for steps in LENGTHS:
            alarms = np.array(each(partial(alarm, noise, steps), few, TESTING)).sum(axis=0)
            healthy.append([noise, f"{steps:,}", *(interval(int(n), few) for n in alarms)])
        found = [np.mean(each(partial(hit, noise, *kind), few, TESTING)) for kind in PLANTED]
        planted.append([noise, *(f"{100 * share:.0f} %" for share in found)])
    kinds = [f"{times:g} x for {length}" for times, length in PLANTED]
    return "\n".join([
        "### Losses: healthy runs with a spike that counts\n",
        f"{few} runs a row. *Before* is without the rules of the tail and of the values before.\n",
        table(["noise", "steps", "before", "with them"], healthy),
        "### Losses: healthy runs in which the loss drops at once\n",
        f"{runs} runs a row, of 200 values; the loss drops at half, as with the learning rate. "
        "*Planted*: three values 50 after the drop are three times as high.\n",
        drop_table(each, runs),
        f"### Losses: planted spikes that count, in {LENGTHS[1]:,} steps\n",
        f"{few} runs a row; the loss is so many times its level for so many steps.\n",
        table(["noise", *kinds], planted),
    ])  # fmt: skip


def drop_table(each: Each, runs: int) -> str:
    rows = []
    for times in DROPS:
        for noise in (0.01, 0.03, 0.1):
            alarms = np.array(each(partial(drop_alarm, times, noise), runs, TESTING)).sum(axis=0)
            cells = (interval(int(n), runs) for n in alarms)
            rows.append([f"{times:g} x", f"{100 * noise:g} %", *cells])
    return table(["drop", "noise", "before", "with both rules", "planted: counts"], rows)


def drop_alarm(times: float, noise: float, seed: int) -> tuple[bool, bool, bool]:
    """Tell whether a loss that drops has a spike, one that counts, and whether a planted one does.

    The planted one is in the same loss.
    """
    logs = noise * np.random.default_rng(seed).standard_normal(200)
    values = np.exp(logs - np.log(times) * (np.arange(200) >= 100))
    before, now, _ = _judged(values)
    values[150:153] *= 3
    _, planted, where = _judged(values)
    found = planted & (where >= 148) & (where <= 153)
    return bool(before.any()), bool(now.any()), bool(found.any())


def alarm(noise: str, steps: int, seed: int) -> tuple[bool, bool]:
    """Tell whether a healthy loss has a spike that would count without the rules, and with."""
    before, now, _ = _judged(NOISES[noise](np.random.default_rng(seed), steps))
    return bool(before.any()), bool(now.any())


def hit(noise: str, times: float, length: int, seed: int) -> bool:
    """Tell whether a planted spike counts."""
    rng, steps = np.random.default_rng(seed), LENGTHS[1]
    values = NOISES[noise](rng, steps)
    at = int(rng.integers(steps // 5, steps - 50))
    values[at : at + length] *= times
    _, now, where = _judged(values)
    return bool((now & (where >= at - 5) & (where <= at + length + 5)).any())


def _judged(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    steps = np.arange(len(values))
    rows = find_spikes(steps, values)
    counts = lasts_or_is_large(rows).to_numpy()
    series = usable_series(steps, values)
    now = counts & rose(*series, rows) & spikes_that_stand_out(*series, rows)
    return counts, now, rows["flagged"].to_numpy()
