"""Where the noise of a series changes at once, as it does when a learning rate drops."""

import numpy as np

from stabkit.detect.robust import FloatArray

SHORTEST = 16  # values of one noise
GAIN = 12.0  # by which the log likelihood of two scales must exceed that of one


def one_noise(sizes: FloatArray) -> list[tuple[int, int]]:
    """Return the first index and the one behind the last of each stretch of one noise.

    sizes [evals]: absolute residuals. A stretch is halved where two scales explain it best, as long
    as they do so better than one by `GAIN`. The likelihood is Laplace's, which large values sway
    less than the normal one: n log(mean size) is what n values cost.
    """
    found, left = [], [(0, sizes.size)]
    while left:
        first, stop = left.pop()
        middle = _best_cut(sizes[first:stop])
        if middle is None:
            found.append((first, stop))
        else:
            left += [(first, first + middle), (first + middle, stop)]
    return sorted(found)


def _best_cut(sizes: FloatArray) -> int | None:
    """Return where two scales begin to explain the sizes, or None if one does as well."""
    before = np.arange(SHORTEST, sizes.size - SHORTEST + 1).astype(np.float64)
    if not before.size:
        return None
    total = float(sizes.sum())
    here = np.cumsum(sizes)[SHORTEST - 1 : sizes.size - SHORTEST]
    cost = _cost(here, before) + _cost(total - here, sizes.size - before)
    best = int(np.argmin(cost))
    whole = float(_cost(np.array([total]), np.array([sizes.size]))[0])
    return SHORTEST + best if whole - float(cost[best]) > GAIN else None


def _cost(total: FloatArray, count: FloatArray) -> FloatArray:
    cost: FloatArray = count * np.log(np.maximum(total, 1e-12) / count)
    return cost
