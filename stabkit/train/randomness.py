"""Random numbers that are functions of their coordinates, not of a generator's state.

Draw `column` of `(seed, epoch, stream, sample)` is one 64-bit hash. A batch can therefore be cut,
reordered or recomputed after a restart, and every sample still gets the same numbers. No global
generator is read or advanced. The hash is splitmix64 (Steele, Lea, Flood 2014,
"Fast splittable pseudorandom number generators"): its finalizer folds the coordinates into a 64-bit
state, its sequence from that state gives the columns.
"""

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # odd integer nearest 2**64 / golden ratio
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# Views use small stream numbers; the order of the data set must not share its bits with them.
_PERMUTATION_STREAM = 2**62


def uniforms(
    seed: int, epoch: int, sample: NDArray[np.int64], stream: int, count: int
) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), shape [B, count], on a grid of 2**-53.

    `sample` [B] holds data-set indices; row `i` depends on `sample[i]` alone, not on B or on
    its neighbors. `stream` separates uses that share a sample, such as the two views.

    Raises ValueError if a coordinate is negative or does not fit 63 bits, or if `sample` is not a
    vector of integers.
    """
    _check_coordinate("count", count)
    # 53 bits: the largest float64 below 1 is reached and 1 itself is not.
    bits = _hashes(seed, epoch, sample, stream, count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order of the samples 0 ... n-1 in one epoch, shape [n].

    A stable sort of hashes has one right answer. The shuffle of a numpy generator may change
    between versions.

    Raises ValueError if an argument is negative or does not fit 63 bits.
    """
    _check_coordinate("n", n)
    keys = _hashes(seed, epoch, np.arange(n, dtype=np.int64), _PERMUTATION_STREAM, 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _hashes(
    seed: int, epoch: int, sample: NDArray[np.int64], stream: int, count: int
) -> NDArray[np.uint64]:
    if sample.ndim != 1 or not np.issubdtype(sample.dtype, np.integer):
        raise ValueError(
            f"sample must be a vector of integers, got {sample.dtype} of shape {sample.shape}"
        )
    if sample.size and sample.min() < 0:
        raise ValueError(f"sample must hold indices of 0 or more, got {sample.min()}")
    # One-element arrays wrap around silently; numpy scalars would warn of overflow.
    state = np.zeros(1, dtype=np.uint64)
    for name, value in (("seed", seed), ("epoch", epoch), ("stream", stream)):
        _check_coordinate(name, value)
        state = _mix((state ^ np.uint64(value)) + _GAMMA)
    state = _mix((state ^ sample.astype(np.uint64)) + _GAMMA)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return _mix(state[:, None] + steps)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


def _check_coordinate(name: str, value: int) -> None:
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} must be an integer from 0 to 2**63 - 1, got {value}")
