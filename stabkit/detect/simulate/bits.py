"""Answers of samples, one bit each, whose mean is the accuracy and which flip at a known rate."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from stabkit.detect.robust import BoolArray, FloatArray
from stabkit.detect.simulate.noise import changing_ar1

LOWEST = 0.002  # levels closer to 0 or 1 leave no sample to flip
MOST_OWN = 0.95  # of a sample's score changes with time at most; the rest is its difficulty


def draw_bits(
    rng: np.random.Generator, level: FloatArray, n: int, *, flips: ArrayLike, memory: ArrayLike
) -> BoolArray:
    """Draw the answers [evals, n] of `n` samples: right with chance `level` at each evaluation.

    level: [evals], or [evals, groups] if groups of samples, taken in turn, differ. flips: share of
    answers that change from one evaluation to the next, one number or [evals]. memory: AR(1)
    coefficient of what changes; 0: answers come and go, near 1: they change for long.

    Every sample has a normal score: its difficulty, which stays, and a part of its own, which
    changes. An answer is right while the score lies below the quantile of `level`, so that the
    expected accuracy is the level exactly.
    """
    evals = len(level)
    groups = level.reshape(evals, -1)
    quantile = ndtri(np.clip(groups, LOWEST, 1 - LOWEST))
    memory = np.broadcast_to(np.asarray(memory, dtype=np.float64), evals)
    own = own_share(np.clip(groups.mean(axis=1), LOWEST, 1 - LOWEST), flips, memory)
    difficulty = rng.standard_normal(n, dtype=np.float32)
    change = changing_ar1(rng.standard_normal((evals, n), dtype=np.float32), memory)
    change *= np.sqrt(own)[:, None].astype(np.float32)
    change += np.sqrt(1 - own)[:, None].astype(np.float32) * difficulty
    correct: BoolArray = change < quantile[:, np.arange(n) % groups.shape[1]]
    return correct


def own_share(level: FloatArray, flips: ArrayLike, memory: FloatArray) -> FloatArray:
    """Return the share of a score's variance that must change for so many answers to flip.

    Two scores with correlation r lie on opposite sides of a quantile q with chance
    2 phi(q) sqrt((1 - r) / pi), for r near 1 (phi: the normal density). Here 1 - r is the share
    times 1 - memory.
    """
    density = np.exp(-(ndtri(level) ** 2) / 2) / np.sqrt(2 * np.pi)
    apart = np.pi * (np.asarray(flips) / (2 * density)) ** 2
    share: FloatArray = np.minimum(apart / (1 - memory), MOST_OWN)
    return share
