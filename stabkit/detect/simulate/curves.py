"""Simulated accuracies with the bits of their samples, healthy or with planted dips."""

from dataclasses import dataclass, field

import numpy as np

from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.simulate.bits import draw_bits
from stabkit.detect.simulate.noise import ar1, changing_ar1, shocks
from stabkit.detect.simulate.planted import Planted, loss_of
from stabkit.detect.simulate.trends import TRENDS

EVERY = 25  # steps between evaluations
CLASSES = 10


@dataclass(frozen=True)
class SimulatedCurve:
    """One simulated run: steps [evals], accuracy [evals], correctness [evals, n]."""

    step: IntArray
    accuracy: FloatArray
    correct: BoolArray


@dataclass(frozen=True)
class Law:
    """What a run is drawn from; arrays have one value for each evaluation.

    level: accuracy without noise; noise: standard deviation of what all samples share, ar: its
    AR(1) coefficient, tails: degrees of freedom of its shocks (None: normal), falls: they are
    exponential, with the long tail below; flips: share of answers that change from one evaluation
    to the next, memory: AR(1) coefficient of what changes; classes: standard deviation of further
    noise that the samples of a class share, of 10 classes.
    """

    step: IntArray
    level: FloatArray
    noise: FloatArray
    ar: FloatArray
    flips: FloatArray
    memory: FloatArray
    n: int = 1000
    tails: float | None = field(default=None, kw_only=True)
    falls: bool = field(default=False, kw_only=True)
    classes: float = field(default=0.0, kw_only=True)


def draw_curve(
    law: Law, rng: np.random.Generator, planted: tuple[Planted, ...] = ()
) -> SimulatedCurve:
    """Draw one run from its law, with the dips planted. Equal generators give equal runs."""
    evals = law.step.size
    common = changing_ar1(shocks(rng, evals, tails=law.tails, falls=law.falls), law.ar)[:, 0]
    level = (law.level + law.noise * common - loss_of(evals, planted))[:, None]
    if law.classes:
        level = level + law.classes * changing_ar1(shocks(rng, evals, CLASSES), law.ar)
    correct = draw_bits(rng, level, law.n, flips=law.flips, memory=law.memory)
    return SimulatedCurve(law.step, correct.mean(axis=1), correct)


def simulate_curve(
    rng: np.random.Generator,
    *,
    evals: int = 100,
    n: int = 1000,
    trend: str = "saturating",
    noise: float = 0.005,
    ar: float = 0.0,
    flips: float = 0.1,
    planted: tuple[Planted, ...] = (),
) -> SimulatedCurve:
    """Simulate the kNN accuracy of a run on `n` fixed samples, with one noise from start to end.

    Sample i has a difficulty d_i, uniform in 0..1, and is answered correctly where the level
    exceeds d_i plus its own noise. The level is the trend, minus the dips, plus noise of standard
    deviation `noise` that all samples share. Both noises are AR(1) with coefficient `ar`. `flips`
    is the share of answers that change from one evaluation to the next if `ar` and all else is 0.
    Noise as recorded runs show it: `scenarios.healthy`.
    """
    t = np.arange(evals)
    level = TRENDS[trend](t / max(evals - 1, 1)) + noise * ar1(rng, evals, ar)[:, 0]
    level = level - loss_of(evals, planted)
    # Two crossings of a difficulty by independent noise of std s differ with chance 2 s / sqrt(pi).
    spread = flips * np.sqrt(np.pi) / 2
    own = spread * ar1(rng, evals, ar, n)
    correct = rng.random(n) + own < level[:, None]
    return SimulatedCurve(EVERY * t, correct.mean(axis=1), correct)
