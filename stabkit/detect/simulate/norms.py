"""Simulated gradient norms of one layer, healthy or with planted spikes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate.noise import ar1, by_quarter, changing_ar1, shocks
from stabkit.detect.simulate.recorded import recorded

Generator = np.random.Generator


@dataclass(frozen=True)
class Spike:
    """A spike to plant: first raised step, how many times as high, in how many steps, its tail.

    The norm rises geometrically, over `growth` steps, to `ratio` times what it would be, stays for
    `lasts` steps, and returns by a factor e (of the logarithm) every `tail` steps; 0: at once.
    """

    at: int
    ratio: float
    growth: int = 1
    tail: float = 0.0
    lasts: int = 1


@dataclass(frozen=True)
class NormLaw:
    """What a gradient norm is drawn from: log level, noise of the log and its AR(1) coefficient.

    Arrays have one value for each step. tails: degrees of freedom of the shocks (None: normal);
    skewed: half of the variance comes from an exponential law.
    """

    level: FloatArray
    sigma: FloatArray
    ar: FloatArray
    tails: float | None = field(default=None, kw_only=True)
    skewed: bool = field(default=False, kw_only=True)

    def shocks(self, rng: Generator, size: int, columns: int = 1) -> FloatArray:
        """Draw independent values [size, columns] of unit variance, with the tails of the law."""
        drawn = shocks(rng, size, columns, tails=self.tails)
        if self.skewed:
            drawn = (drawn + rng.exponential(1.0, drawn.shape) - 1) / np.sqrt(2)
        return drawn


def norms(name: str, seed: int, spikes: tuple[Spike, ...] = (), *, steps: int = 500) -> FloatArray:
    """Draw the gradient norm [steps] of a scenario of `NORMS` that belongs to a seed.

    Raises ValueError for an unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"no scenario of norms {name!r}; there are {', '.join(NORMS)}")
    rng = np.random.default_rng([seed, *name.encode()])
    law = NORMS[name](rng, steps)
    drawn = law.shocks(rng, steps)
    log = law.level + law.sigma * changing_ar1(drawn, law.ar)[:, 0]
    return np.exp(log + raised(steps, spikes))


def raised(steps: int, spikes: tuple[Spike, ...]) -> FloatArray:
    """Return by how much the spikes raise the logarithm at each step."""
    t, log = np.arange(steps), np.zeros(steps)
    for spike in spikes:
        since = t - (spike.at + spike.growth - 1)  # steps after the peak is reached
        over = np.maximum(since - (spike.lasts - 1), 0)  # after it is left
        rising = np.clip((since + spike.growth) / spike.growth, 0, 1)
        returning = np.exp(-over / spike.tail) if spike.tail else over == 0
        log += np.log(spike.ratio) * rising * returning
    return log


def fall(steps: int, times: float, every: float) -> FloatArray:
    """Return a log level that falls to 1 / times, at first by a factor e every so many steps."""
    level: FloatArray = np.log(1 / times + (1 - 1 / times) * np.exp(-np.arange(steps) / every))
    return level


def real_norms(name: str, steps: int) -> NormLaw:
    """Return the law of a recorded run's gradient norms: its fall, its noise by quarter."""
    run = recorded()[name].norms
    at = np.linspace(0, len(run.level) - 1, steps)
    level = np.interp(at, np.arange(len(run.level)), run.level)
    return NormLaw(level, by_quarter(run.sigma, steps), by_quarter(run.ar, steps),
                   skewed=run.skew > 0.25)  # fmt: skip


def _law(level: FloatArray, sigma: float, ar: float = 0.0, tails: float | None = None) -> NormLaw:
    return NormLaw(level, np.full(level.size, sigma), np.full(level.size, ar), tails=tails)


def _warm_up(steps: int) -> FloatArray:
    level: FloatArray = np.log(10) * np.minimum(np.arange(steps) / 100, 1)
    return level


def _epochs(steps: int) -> FloatArray:
    level: FloatArray = 0.5 * (1 - (np.arange(steps) % 50) / 50)
    return level


def _grows(steps: int) -> NormLaw:
    return NormLaw(np.zeros(steps), 0.08 * (0.3 / 0.08) ** np.linspace(0, 1, steps),
                   np.zeros(steps))  # fmt: skip


def _shift(rng: Generator, steps: int) -> FloatArray:
    at = int(rng.integers(steps // 4, 3 * steps // 4))
    level: FloatArray = np.log(3) * (np.arange(steps) >= at)
    return level


NORMS: dict[str, Callable[[Generator, int], NormLaw]] = {
    "stationary": lambda rng, steps: _law(np.zeros(steps), 0.3),
    "AR .5": lambda rng, steps: _law(np.zeros(steps), 0.3, 0.5),
    "AR .9": lambda rng, steps: _law(np.zeros(steps), 0.3, 0.9),
    "falls 10x in 40": lambda rng, steps: _law(fall(steps, 10, 40), 0.12, 0.2),
    "falls 100x in 40": lambda rng, steps: _law(fall(steps, 100, 40), 0.2, 0.2),
    "falls 100x in 100": lambda rng, steps: _law(fall(steps, 100, 100), 0.2, 0.2),
    "real_lr004": lambda rng, steps: real_norms("real_lr004", steps),
    "real_lr016": lambda rng, steps: real_norms("real_lr016", steps),
    "real_batch512": lambda rng, steps: real_norms("real_batch512", steps),
    "warm-up rises 10x": lambda rng, steps: _law(_warm_up(steps), 0.2),
    "saw-tooth, every 50": lambda rng, steps: _law(_epochs(steps), 0.1),
    "noise grows": lambda rng, steps: _grows(steps),
    "random walk": lambda rng, steps: _law(np.cumsum(0.03 * rng.standard_normal(steps)), 0.2),
    "t5": lambda rng, steps: _law(np.zeros(steps), 0.3, tails=5.0),
    "t3": lambda rng, steps: _law(np.zeros(steps), 0.3, tails=3.0),
    "skewed": lambda rng, steps: NormLaw(
        np.zeros(steps), np.full(steps, 0.3), np.zeros(steps), skewed=True),
    "level shift 3x": lambda rng, steps: _law(_shift(rng, steps), 0.2),
}  # fmt: skip


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
