"""Simulated runs, healthy or with known events, on which the detectors are calibrated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.signal import lfilter

from stabkit.detect.robust import BoolArray, FloatArray, IntArray

Shape = Literal["box", "v", "sawtooth"]
EVERY = 25  # steps between evaluations


@dataclass(frozen=True)
class Planted:
    """A dip to plant: first lowered evaluation, how many, how deep (fraction), its shape.

    "box" falls and returns at once, "v" falls and returns evenly, "sawtooth" falls at once and
    returns evenly. `lasting` is the share of the depth that stays for good. With a width that
    reaches beyond the end, the run ends in the dip.
    """

    at: int
    width: int
    depth: float
    shape: Shape = "box"
    lasting: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One simulated run: steps [evals], accuracy [evals], correctness [evals, n]."""

    step: IntArray
    accuracy: FloatArray
    correct: BoolArray


TRENDS: dict[str, Callable[[FloatArray], FloatArray]] = {
    # share of the run that has passed, in 0..1 -> accuracy of a healthy run
    "flat": lambda t: np.full_like(t, 0.5),
    "linear": lambda t: 0.2 + 0.4 * t,
    "saturating": lambda t: 0.1 + 0.6 * (1 - np.exp(-3.3 * t)),
    "sigmoid": lambda t: 0.1 + 0.6 / (1 + np.exp(-14 * (t - 0.4))),
    "plateau": lambda t: 0.1 + 0.5 * (1 - np.exp(-9 * t)) + 0.2 * np.clip((t - 0.55) * 3, 0, 1),
}


def ar1(rng: np.random.Generator, size: int, coefficient: float, columns: int = 1) -> FloatArray:
    """Draw stationary AR(1) noise [size, columns] of unit variance."""
    shocks = rng.standard_normal((size, columns))
    shocks[1:] *= np.sqrt(1 - coefficient**2)  # the first is a draw of the stationary law itself
    noise: FloatArray = lfilter([1.0], [1.0, -coefficient], shocks, axis=0)
    return noise


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
) -> Curve:
    """Simulate the kNN accuracy of a run on `n` fixed samples, evaluated `evals` times.

    Sample i has a difficulty d_i, uniform in 0..1, and is answered correctly where the level
    exceeds d_i plus its own noise. The level is the trend, minus the dips, plus noise of standard
    deviation `noise` that all samples share. Both noises are AR(1) with coefficient `ar`. `flips`
    is the share of answers that change from one evaluation to the next if `ar` and all else is 0.
    """
    t = np.arange(evals)
    level = TRENDS[trend](t / max(evals - 1, 1)) + noise * ar1(rng, evals, ar)[:, 0]
    for dip in planted:
        level = level - dip.depth * _form(t, dip)
    # Two crossings of a difficulty by independent noise of std s differ with chance 2 s / sqrt(pi).
    spread = flips * np.sqrt(np.pi) / 2
    own = spread * ar1(rng, evals, ar, n)
    correct = rng.random(n) + own < level[:, None]
    return Curve(EVERY * t, correct.mean(axis=1), correct)


def _form(t: IntArray, dip: Planted) -> FloatArray:
    """Return the shape of a dip over time: 1 where it is deepest, 0 outside."""
    inside = (t >= dip.at) & (t < dip.at + dip.width)
    along = (t - dip.at + 0.5) / dip.width
    shape = {
        "box": np.ones(t.size),
        "v": 1 - np.abs(2 * along - 1),
        "sawtooth": np.minimum(1.0, 1.25 * (1 - along)),
    }[dip.shape]
    form: FloatArray = np.where(inside, shape, 0.0)
    lasting = np.where(t >= dip.at, dip.lasting, 0.0)
    return np.maximum(form, lasting)


def simulate_norms(
    rng: np.random.Generator,
    *,
    steps: int = 1000,
    sigma: float = 0.3,
    ar: float = 0.0,
    trend: float = 0.0,
    fall: tuple[float, float] | None = None,
    tails: float | None = None,
    spikes: tuple[tuple[int, float, int], ...] = (),
) -> FloatArray:
    """Simulate gradient norms [steps] of a layer: log-normal around exp(trend x share of the run).

    `fall` = (times, steps): the level also falls to 1 / times, by a factor e every so many steps at
    first, as in the first steps of a training.
    `sigma` is the standard deviation of the logarithm, `ar` its AR(1) coefficient, `tails` the
    degrees of freedom of Student noise instead of normal. A spike (at, ratio, growth) multiplies
    the norm by up to `ratio` at step `at`, rising and falling geometrically over `growth` steps.
    """
    noise = ar1(rng, steps, ar)[:, 0]
    if tails is not None:
        noise = noise / np.sqrt(rng.chisquare(tails, steps) / (tails - 2))
    t = np.arange(steps)
    log = sigma * noise + trend * t / steps
    if fall is not None:
        log += np.log(1 / fall[0] + (1 - 1 / fall[0]) * np.exp(-t / fall[1]))
    for at, ratio, growth in spikes:
        log += np.log(ratio) * np.clip(1 - np.abs(t - at) / growth, 0, 1)
    return np.exp(log)
