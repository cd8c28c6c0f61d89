"""Noise whose size, memory and tails are known: autocorrelated, changing, heavy-tailed."""

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import lfilter

from stabkit.detect.robust import FloatArray

Float = TypeVar("Float", np.float32, np.float64)


def ar1(rng: np.random.Generator, size: int, coefficient: float, columns: int = 1) -> FloatArray:
    """Draw stationary AR(1) noise [size, columns] of unit variance."""
    shocks = rng.standard_normal((size, columns))
    shocks[1:] *= np.sqrt(1 - coefficient**2)  # the first is a draw of the stationary law itself
    noise: FloatArray = lfilter([1.0], [1.0, -coefficient], shocks, axis=0)
    return noise


def shocks(
    rng: np.random.Generator,
    size: int,
    columns: int = 1,
    tails: float | None = None,
    *,
    falls: bool = False,
) -> FloatArray:
    """Draw independent values [size, columns] of unit variance: normal, or Student's t.

    `tails` is the number of degrees of freedom, above 2. `falls`: exponential instead, with the
    long tail below.
    """
    if falls:
        return 1 - rng.exponential(1.0, (size, columns))
    if tails is None:
        return rng.standard_normal((size, columns))
    drawn: FloatArray = rng.standard_t(tails, (size, columns)) * np.sqrt((tails - 2) / tails)
    return drawn


def changing_ar1(drawn: NDArray[Float], coefficient: ArrayLike) -> NDArray[Float]:
    """Give independent values [size, columns] an AR(1) memory that changes with time.

    `coefficient`: [size] or one number. The variance stays that of the values.
    """
    memory = np.broadcast_to(np.asarray(coefficient, dtype=np.float64), len(drawn))
    fresh = np.sqrt(1 - memory**2)
    out = np.empty_like(drawn)
    out[:1] = drawn[:1]
    for t in range(1, len(drawn)):
        np.multiply(out[t - 1], memory[t], out=out[t])
        out[t] += fresh[t] * drawn[t]
    return out


def by_quarter(values: ArrayLike, size: int) -> FloatArray:
    """Spread four values, one for each quarter of a series, over `size` points.

    Each holds at the middle of its quarter; between the middles, and beyond the outer ones by an
    eighth of the series, values change evenly.
    """
    four = np.asarray(values, dtype=np.float64)
    ends = (1.5 * four[0] - 0.5 * four[1], 1.5 * four[3] - 0.5 * four[2])
    known = np.clip([ends[0], *four, ends[1]], 0.5 * four.min(), 1.5 * four.max())
    spread: FloatArray = np.interp(
        (np.arange(size) + 0.5) / size, [0, 0.125, 0.375, 0.625, 0.875, 1], known
    )
    return spread
