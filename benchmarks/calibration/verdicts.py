"""Measure how often a healthy run as a whole is called unstable, or is said to have bursts."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.verdict import UNSTABLE
from stabkit.detect.simulate import Planted, healthy, layers, simulate_norms
from stabkit.store.reader import open_run
from stabkit.store.schema import METRIC, SIGNALS
from stabkit.store.writer import Writer

RUNS = {  # what is drawn: noise of the accuracy, and of the gradient norms
    "real_lr004": "real_lr004",
    "real_lr016": "real_lr016",
    "real_batch512": "real_batch512",
    "constant": "AR .5",
    "noise falls": "falls 10x in 40",
    "restless": "falls 100x in 100",
}
# Logarithm of the loss in five runs of `mid_training`: standard deviation .006 to .02 around its
# median of 41 steps, AR(1) coefficient .5 to .6, and a fall by a fifth.
LOSS = {"sigma": 0.01, "ar": 0.5}
DIP = (Planted(60, 8, 0.08),)  # 8 evaluations, 8 points


def verdict_tables(each: Each, runs: int) -> str:
    """Return the table; `runs`: healthy runs of each kind. A quarter as many have a dip."""
    rows, total = [], Counter[str]()
    for name in RUNS:
        found = Counter(each(partial(verdict_of, name, ()), runs, TESTING))
        dipped = each(partial(verdict_of, name, DIP), max(2, runs // 4), TESTING + 500_000)
        rows.append([name, *_shares(found, runs), _unstable(Counter(dipped), len(dipped))])
        total += found
    rows.append(["**all of these**", *_shares(total, runs * len(RUNS)), "-"])
    return "\n".join([
        "### Verdicts on whole runs\n",
        f"{runs:,} healthy runs of each kind: 100 evaluations, 2,500 steps, a loss, 11 layers.\n",
        table(["healthy runs", "unstable, collapsed or diverged", "bursts", "outlier or stuck",
               "stable", "unstable with a dip of 8 points"], rows),
    ])  # fmt: skip


def verdict_of(name: str, planted: tuple[Planted, ...], seed: int) -> str:
    """Write a run into a folder and return its verdict, as `stabkit analyze` does."""
    curve = healthy(name, seed, planted)
    steps = np.arange(int(curve.step[-1]) + 1)
    drawn = layers(seed, name=RUNS[name], steps=steps.size)
    rng = np.random.default_rng([seed, *b"loss"])
    loss = 5 * simulate_norms(rng, steps=steps.size, fall=(1.25, steps.size / 20), **LOSS)
    norms = drawn.norms.astype(np.float32)
    missing = dict.fromkeys(SIGNALS, np.zeros(norms.shape, dtype=bool))
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), "simulated")
        writer.add_layers(steps, list(drawn.names), dict.fromkeys(SIGNALS, norms), missing)
        writer.add_scalars(steps, "loss", loss)
        for step, accuracy, correct in zip(curve.step, curve.accuracy, curve.correct, strict=True):
            writer.add_eval(int(step), METRIC, float(accuracy), 0.1, 20, 0.07, correct)
        writer.flush()
        return Diagnosis(open_run(folder)).verdict


def _shares(found: Counter[str], runs: int) -> list[str]:
    odd = found["outlier"] + found["stuck"]
    return [
        _unstable(found, runs),
        interval(found["bursts"], runs),
        interval(odd, runs),
        percent(found["stable"], runs),
    ]


def _unstable(found: Counter[str], runs: int) -> str:
    return interval(sum(found[verdict] for verdict in UNSTABLE), runs)
