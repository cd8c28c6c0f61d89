"""What recorded healthy runs look like: their statistics, and how those are measured.

`recorded.json` holds one `Recorded` for each run. `python -m benchmarks.calibration.record` makes
it from run folders.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import stats

from stabkit.detect.robust import BoolArray, FloatArray, difference_scale, noise_scale

FILE = Path(__file__).with_name("recorded.json")
KNOTS = 32  # steps at which the level of gradient norms is kept
HALF = 10  # values on each side of one, whose median is its level
LAG = 4  # evaluations; how many answers differ so far apart tells how long they stay changed


@dataclass(frozen=True)
class Quarters:
    """Statistics of an accuracy in each quarter of a run.

    noise: standard deviation (fraction), ar: AR(1) coefficient, both by `noise_scale`; flips: share
    of answers that differ from the evaluation before; flips_apart: the same LAG evaluations apart;
    excess: scale of neighbors' differences (of their MAD) over that of independent samples.
    """

    noise: tuple[float, ...]
    ar: tuple[float, ...]
    flips: tuple[float, ...]
    flips_apart: tuple[float, ...]
    excess: tuple[float, ...]


@dataclass(frozen=True)
class Norms:
    """Statistics of the gradient norms of a run, medians over its layers.

    level: log of the norm at equal distances, relative to its end; sigma, ar: noise of the log by
    quarter; skew, kurtosis: of its residuals in the last quarter; together: correlation of
    the residuals of two layers; neighbors: the same of neighboring blocks; both 1 for one layer.
    """

    level: tuple[float, ...]
    sigma: tuple[float, ...]
    ar: tuple[float, ...]
    skew: float
    kurtosis: float
    together: float
    neighbors: float


@dataclass(frozen=True)
class Recorded:
    """One healthy run: where it comes from, its rising accuracy at equal distances, its noise."""

    source: str
    every: int
    evals: int
    n: int
    trend: tuple[float, ...]
    quarters: Quarters
    norms: Norms


@cache
def recorded() -> dict[str, Recorded]:
    """Return the stored statistics by the name of the run."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: Recorded(**{**run, "quarters": Quarters(**run["quarters"]),
                          "norms": Norms(**run["norms"])})
        for name, run in content.items()
    }  # fmt: skip


def write_recorded(runs: dict[str, Recorded]) -> None:
    """Write the statistics of the runs as JSON."""
    text = json.dumps({name: asdict(run) for name, run in runs.items()}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")


def measure_accuracy(accuracy: FloatArray, correct: BoolArray) -> Quarters:
    """Measure an accuracy [evals] and its bits [evals, n] in each quarter."""
    noise, ar, flips, apart, excess = [], [], [], [], []
    for at in np.array_split(np.arange(accuracy.size), 4):
        scale, coefficient = noise_scale(accuracy[at])
        bits = correct[at]
        flipped = np.mean(bits[1:] != bits[:-1])
        noise.append(round(scale, 5))
        ar.append(round(coefficient, 2))
        flips.append(round(float(flipped), 4))
        apart.append(round(float(np.mean(bits[LAG:] != bits[:-LAG])), 4))
        independent = np.sqrt(max(flipped, 1e-6) / bits.shape[1])
        excess.append(round(float(difference_scale(accuracy[at]) * 2**0.5 / independent), 2))
    return Quarters(tuple(noise), tuple(ar), tuple(flips), tuple(apart), tuple(excess))


def measure_norms(norms: FloatArray, blocks: list[int]) -> Norms:
    """Measure gradient norms [steps, layers]; `blocks` are the columns of neighboring blocks."""
    logs = np.log(norms)
    smooth = np.stack([_median_filter(column) for column in logs.T], axis=1)
    rest = logs - smooth
    at = np.linspace(0, len(logs) - 1, KNOTS).round().astype(int)
    level = np.median(smooth - smooth[-1], axis=1)[at]
    quarters = np.array_split(np.arange(len(logs)), 4)
    noises = np.array([[noise_scale(column[q], 10) for column in logs.T] for q in quarters])
    last = rest[quarters[3]]
    together = np.atleast_2d(np.corrcoef(rest.T))
    beside = [together[a, b] for a, b in pairwise(blocks)]
    pairs = together[np.triu_indices(len(together), 1)]
    numbers = [stats.skew(last), stats.kurtosis(last), pairs, np.array(beside)]
    skew, kurtosis, common, neighbors = (
        round(float(np.median(x)), 2) if x.size else 1.0 for x in numbers
    )
    sigma, ar = np.median(noises, axis=1).T.round(3)
    return Norms(tuple(level.round(3).tolist()), tuple(sigma.tolist()), tuple(ar.tolist()),
                 skew, kurtosis, common, neighbors)  # fmt: skip


def _median_filter(values: FloatArray) -> FloatArray:
    """Return the running median over 2 HALF + 1 values, fewer near the ends."""
    size = values.size
    reach = np.minimum(np.minimum(np.arange(size), np.arange(size)[::-1]), HALF)
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])
