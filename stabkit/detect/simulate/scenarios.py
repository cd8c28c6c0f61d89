"""Healthy runs by name: as recorded runs are, and as runs may be where noise or grid differ."""

from collections.abc import Callable

import numpy as np

from stabkit.detect.robust import FloatArray, IntArray
from stabkit.detect.simulate import trends
from stabkit.detect.simulate.curves import EVERY, Law, SimulatedCurve, draw_curve
from stabkit.detect.simulate.noise import by_quarter
from stabkit.detect.simulate.planted import Planted
from stabkit.detect.simulate.recorded import LAG, Recorded, recorded

COMMON_AR = 0.75  # AR(1) coefficient of the noise that the samples of a recorded run share
# The least ratio of the scatter of neighbors' differences to that of independent samples: 25
# evaluations tell it to .2, and with nothing shared the noise would be smaller than recorded.
LEAST_EXCESS = 1.06
LONGEST_MEMORY = 0.97
# AR(1) coefficient of the noise that the samples of the restless run share. Around a smooth curve
# through that run, neighbors correlate by .3; without the independent part of its samples, by .4 to
# .5. A curve that follows the noise takes some of that away.
RESTLESS_AR = 0.6
RESTLESS_SHOWN = 0.88  # share of such noise that `noise_scale` sees in a quarter of 30 evaluations
MEMORIES = np.linspace(0.0, LONGEST_MEMORY, 98)

Generator = np.random.Generator


def healthy(
    name: str, seed: int, planted: tuple[Planted, ...] = (), *, n: int | None = None
) -> SimulatedCurve:
    """Draw the run of a healthy scenario of `HEALTHY` that belongs to a seed.

    `planted`: dips for it; most scenarios have 100 evaluations. `n`: samples, where the scenario
    does not say. Raises ValueError for an unknown name.
    """
    if name not in HEALTHY:
        raise ValueError(f"no healthy scenario {name!r}; there are {', '.join(HEALTHY)}")
    rng = np.random.default_rng([seed, *name.encode()])
    law = HEALTHY[name](rng)
    if n is not None:
        law = Law(**{**vars(law), "n": n})
    return draw_curve(law, rng, planted)


def real(name: str, rng: Generator) -> Law:
    """Return the law of a recorded run: its rise, and its noise and flips by quarter.

    The end of the rise varies by a tenth from run to run.
    """
    run = recorded()[name]
    quarters, size = run.quarters, run.evals
    t = np.linspace(0, 1, size)
    level = np.interp(t, np.linspace(0, 1, len(run.trend)), run.trend)
    level = level[0] + (level - level[0]) * rng.uniform(0.9, 1.1)
    return Law(
        run.every * np.arange(size), level, by_quarter(common_noise(run), size),
        np.full(size, COMMON_AR), by_quarter(quarters.flips, size),
        np.minimum(by_quarter(memories(run), size), LONGEST_MEMORY), run.n,
    )  # fmt: skip


def _restless(rng: Generator) -> Law:
    """Return the law of a run at a high rate: its recorded noise and flips, but a healthy curve.

    That run falls for long, so its own rise is not used. What its samples share is what its noise
    shows beyond samples that change independently of each other. It changes at once from quarter to
    quarter, because an even change would cut off the peak in the second.
    """
    run = recorded()["restless"]
    quarters, size = run.quarters, run.evals
    memory = memories(run)
    independent = np.array(quarters.flips) / (2 * run.n * (1 - memory))
    noise = np.array(quarters.noise) / RESTLESS_SHOWN
    common = np.sqrt(np.maximum(noise**2 - independent, 0.0))
    return Law(
        run.every * np.arange(size), any_trend(rng)(np.linspace(0, 1, size)),
        common[4 * np.arange(size) // size], np.full(size, RESTLESS_AR),
        by_quarter(quarters.flips, size), by_quarter(memory, size), run.n,
    )  # fmt: skip


def memories(run: Recorded) -> FloatArray:
    """Return the AR(1) coefficient of what changes in a sample, by quarter.

    With coefficient a, answers LAG evaluations apart differ sqrt((1 - a^LAG) / (1 - a)) times as
    often as those of neighbors.
    """
    growth = np.sqrt((1 - MEMORIES**LAG) / (1 - MEMORIES))
    seen = np.array(run.quarters.flips_apart) / np.array(run.quarters.flips)
    coefficient: FloatArray = np.interp(seen, growth, MEMORIES)
    return coefficient


def common_noise(run: Recorded) -> FloatArray:
    """Return the standard deviation of what all samples share, by quarter.

    It is what the differences of neighboring accuracies show beyond independent samples.
    """
    excess = np.maximum(run.quarters.excess, LEAST_EXCESS)
    beyond = (excess**2 - 1) * np.array(run.quarters.flips) / run.n
    noise: FloatArray = np.sqrt(beyond / (2 * (1 - COMMON_AR)))
    return noise


def plain(
    level: Callable[[FloatArray], FloatArray],
    *,
    evals: int = 100,
    step: IntArray | None = None,
    noise: tuple[float, float] = (0.005, 0.005),
    ar: tuple[float, float] = (0.5, 0.5),
    flips: tuple[float, float] = (0.1, 0.1),
    n: int = 1000,
    tails: float | None = None,
    falls: bool = False,
    classes: float = 0.0,
) -> Law:
    """Return a law whose noise changes evenly in its logarithm from the first value to the last.

    `step`: the evaluations, by default every EVERY steps. Memory over a longer gap is that over as
    many usual gaps.
    """
    step = EVERY * np.arange(evals) if step is None else step
    t = (step - step[0]) / (step[-1] - step[0])
    gaps = np.diff(step, prepend=step[0] - EVERY) / EVERY
    memory = (ar[0] + (ar[1] - ar[0]) * t) ** gaps
    return Law(step, level(t), _between(noise, t), memory, _between(flips, t), memory, n,
               tails=tails, falls=falls, classes=classes)  # fmt: skip


def _between(ends: tuple[float, float], t: FloatArray) -> FloatArray:
    changing: FloatArray = ends[0] * (ends[1] / ends[0]) ** t
    return changing


def any_trend(rng: Generator) -> Callable[[FloatArray], FloatArray]:
    """Return one of `TRENDS`, drawn."""
    return trends.TRENDS[list(trends.TRENDS)[int(rng.integers(len(trends.TRENDS)))]]


def at_gaps(gaps: FloatArray) -> IntArray:
    """Return whole steps with about these gaps between them, at least 1."""
    return np.cumsum(np.maximum(1, np.rint(gaps))).astype(np.int64)


def _staircase(rng: Generator) -> Law:
    drops, jump = (rng.uniform(0.3, 0.4), rng.uniform(0.6, 0.75)), rng.uniform(0.03, 0.07)
    return plain(lambda t: trends.staircase(t, drops, jump))


def _rate_drops(rng: Generator, falls: bool = False) -> Law:
    """Return a law of 200 evaluations of 10,000 samples, over two drops of the learning rate.

    The noise falls at the drops, to a tenth and to half of that.
    """
    drops, jump = (rng.uniform(0.3, 0.5), rng.uniform(0.6, 0.75)), rng.uniform(0.02, 0.05)
    law = plain(lambda t: trends.staircase(t, drops, jump), evals=200, ar=(0.2, 0.2), n=10_000)
    after = np.searchsorted(drops, np.linspace(0, 1, 200), side="right")  # drops that have passed
    noise = rng.uniform(0.01, 0.04) * np.array([1.0, 0.1, 0.05])[after]
    flips = np.array([0.12, 0.04, 0.03])[after]
    return Law(law.step, law.level, noise, law.ar, flips, law.memory, law.n, falls=falls)


def _sag_then_drop(rng: Generator) -> Law:
    begin, drop = rng.uniform(0.2, 0.35), rng.uniform(0.45, 0.7)
    sag, jump = rng.uniform(0.01, 0.02), rng.uniform(0.02, 0.06)
    return plain(lambda t: trends.sag_then_drop(t, begin, drop, sag, jump))


def _overshoot(rng: Generator) -> Law:
    drop, jump, sag = rng.uniform(0.4, 0.55), rng.uniform(0.03, 0.06), rng.uniform(0.015, 0.025)
    return plain(lambda t: trends.overshoot(t, drop, jump, sag))


def _cool_down(rng: Generator) -> Law:
    begin, gain = rng.uniform(0.7, 0.85), rng.uniform(0.06, 0.12)
    return plain(lambda t: trends.cool_down(t, begin, gain))


def _irregular(rng: Generator) -> Law:
    return plain(any_trend(rng), step=at_gaps(EVERY * rng.exponential(1.0, 100)))


def _two_grids(rng: Generator, first: int, second: int) -> Law:
    return plain(any_trend(rng), step=at_gaps(np.repeat([float(first), float(second)], 50)))


def _missing(rng: Generator) -> Law:
    kept = np.sort(rng.permutation(100)[:75])
    return plain(any_trend(rng), step=EVERY * kept)


FALLS, SETTLES = (0.02, 0.002), (0.12, 0.012)  # noise and flips, from first evaluation to last

HEALTHY: dict[str, Callable[[Generator], Law]] = {
    "constant": lambda rng: plain(any_trend(rng)),
    "constant, independent": lambda rng: plain(any_trend(rng), ar=(0.0, 0.0)),
    "real_lr004": lambda rng: real("real_lr004", rng),
    "real_lr016": lambda rng: real("real_lr016", rng),
    "real_lr004_frozen": lambda rng: real("real_lr004_frozen", rng),
    "real_lr016_frozen": lambda rng: real("real_lr016_frozen", rng),
    "real_batch512": lambda rng: real("real_batch512", rng),
    "restless": _restless,
    "noise falls, independent": lambda rng: plain(
        any_trend(rng), noise=FALLS, ar=(0.0, 0.0), flips=SETTLES),
    "noise falls": lambda rng: plain(any_trend(rng), noise=FALLS, ar=(0.6, 0.3), flips=SETTLES),
    "noise grows": lambda rng: plain(any_trend(rng), noise=(0.003, 0.015)),
    "t3 shocks": lambda rng: plain(any_trend(rng), tails=3.0),
    "t5 shocks": lambda rng: plain(any_trend(rng), tails=5.0),
    "skewed shocks": lambda rng: plain(
        any_trend(rng), noise=(0.01, 0.01), ar=(0.2, 0.2), falls=True),
    "skewed shocks, noise falls": lambda rng: plain(
        any_trend(rng), noise=(0.015, 0.005), falls=True),
    "rate drops": _rate_drops,
    "rate drops, skewed shocks": lambda rng: _rate_drops(rng, falls=True),
    "classes": lambda rng: plain(any_trend(rng), classes=0.03),
    "staircase": _staircase,
    "sag, then rate drop": _sag_then_drop,
    "overshoot": _overshoot,
    "cool-down": _cool_down,
    "slow cosine": lambda rng: plain(trends.cosine),
    "irregular": _irregular,
    "dense then sparse": lambda rng: _two_grids(rng, 5, 50),
    "sparse then dense": lambda rng: _two_grids(rng, 50, 5),
    "missing 25 %": _missing,
    "8 evaluations": lambda rng: plain(any_trend(rng), evals=8),
    "12 evaluations": lambda rng: plain(any_trend(rng), evals=12),
    "30 evaluations": lambda rng: plain(any_trend(rng), evals=30),
    "1,000 evaluations": lambda rng: plain(any_trend(rng), evals=1000),
    "10,000 evaluations": lambda rng: plain(any_trend(rng), evals=10_000),
    "n = 200": lambda rng: plain(any_trend(rng), n=200),
    "n = 50,000": lambda rng: plain(any_trend(rng), n=50_000),
}  # fmt: skip
LONG = ("1,000 evaluations", "10,000 evaluations", "n = 50,000")  # slow: seconds for some runs
REALISTIC = tuple(name for name in HEALTHY if name.startswith("real_"))
