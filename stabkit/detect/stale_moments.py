"""Stale moments: gradients far larger than what Adam's second moment remembers of them."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.robust import FloatArray, IntArray, checked_series
from stabkit.detect.spikes import MERGE, begin_events

THRESHOLD = 2.3  # of adam_rms in Wortsman et al. 2023, arXiv 2304.13013
MIN_HISTORY = 20  # updates that are not judged: second moments are still those of the first few
ROUNDING = 1e-3  # relative, at the ceiling: adam_rms is float32, second moments may be bfloat16
AT_CEILING = 1e-6  # 1 - (1 - b) adam_rms^2 is 0 at the ceiling; below this it is float32 rounding

EVENTS = {
    "onset": "int64",
    "peak": "int64",
    "end": "int64",
    "height": "float64",
    "adam_rms": "float64",
}


def gradient_surprise(
    adam_rms: ArrayLike, beta2: float, updates: ArrayLike | None = None
) -> FloatArray:
    """Return how many times a layer's gradient exceeds what Adam remembered before it.

    adam_rms: sqrt(mean(g^2 / v)) over a layer, v the bias-corrected second moment *after* the
    update. The update puts g^2 into v, so adam_rms cannot exceed 1 / sqrt(1 - beta2) (31.6 at .999,
    4.5 at .95) however large g is, and a bar on it means something else at each beta2. With m the
    moment before the update, v = b m + (1 - b) g^2. Divided by g^2 and solved for the surprise:

        sqrt(g^2 / m) = sqrt(b adam_rms^2 / (1 - (1 - b) adam_rms^2)).

    b is beta2 once the bias correction is over. After `updates` updates, this one included, it is
    beta2 (1 - beta2^(updates - 1)) / (1 - beta2^updates), which is about a half at the second
    update. Without `updates`, many updates are assumed. At the ceiling Adam remembers nothing and
    the surprise is infinite. This holds at the first update, and for a surprise above some
    thousand, which float32 cannot tell from the ceiling.

    The surprise is about 1 in a healthy layer. Where the elements of a layer differ in surprise, it
    is a mean over them that saturates with adam_rms: at most their root mean square.

    Returns an array of the shape of adam_rms, NaN where adam_rms is NaN. Raises ValueError for a
    negative value, a value above the ceiling (it is of another beta2, or not after the update), and
    beta2 outside 0..1.
    """
    rms = np.asarray(adam_rms, dtype=np.float64)
    if not 0 < beta2 < 1:
        raise ValueError(f"beta2 must be between 0 and 1, got {beta2}")
    ceiling = 1 / math.sqrt(1 - beta2)
    wrong = rms[(rms < 0) | ((rms > ceiling * (1 + ROUNDING)) & np.isfinite(rms))]
    if wrong.size:
        raise ValueError(
            f"adam_rms must be in 0..{ceiling:.4g}, the ceiling of beta2 {beta2}, got "
            f"{wrong[0]:.4g}: it is of another beta2, or its second moment is not that after "
            "the update"
        )
    return surprise(rms, beta2, updates)


def surprise(rms: FloatArray, beta2: float, updates: ArrayLike | None) -> FloatArray:
    """Return `gradient_surprise` without its checks; infinite above the ceiling."""
    new = share_of_new(beta2, updates)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        squared = np.square(rms)
        memory = 1 - new * squared
        # At the ceiling the difference cancels, and its quotient would be rounding of any size.
        known = np.where(memory > AT_CEILING, (1 - new) * squared / memory, np.inf)
        return np.where(np.isfinite(rms), np.sqrt(known), np.nan)


def share_of_new(beta2: float, updates: ArrayLike | None = None) -> FloatArray:
    """Return the share of the last of `updates` gradients in the bias-corrected second moment.

    It is (1 - beta2) / (1 - beta2^updates); `expm1` keeps its digits for beta2 near 1.
    """
    if updates is None:
        return np.asarray(1 - beta2)
    count = np.maximum(np.asarray(updates, dtype=np.float64), 1)
    return np.asarray((1 - beta2) / -np.expm1(count * math.log(beta2)))


def find_stale_moments(
    step: ArrayLike,
    adam_rms: ArrayLike,
    beta2: float,
    *,
    threshold: float = THRESHOLD,
    merge: int = MERGE,
    min_history: int = MIN_HISTORY,
    first_update: int = 0,
) -> pd.DataFrame:
    """Find steps at which a layer's gradient is at least `threshold` times what Adam remembers.

    Adam then divides by a second moment that is too small, and its update is too large. The rule is
    that of Wortsman et al. 2023 (arXiv 2304.13013): spikes of CLIP's loss came 1 to 8 steps after
    adam_rms of the patch embedding passed 2.3. Here the bar is on `gradient_surprise`, so that it
    is the same at every beta2 (adam_rms of 2.3 is a surprise of 2.305 at .999, of 3.2 at .9).

    adam_rms [steps] as `gradient_surprise` takes it; `first_update` is the step of the optimizer's
    first update, from which the bias correction follows. The first `min_history` updates are not
    judged: a layer behind weights that start at zero has no gradient at its first update, and at
    its second Adam remembers nothing. Flagged points that are neighbors, or at most `merge` steps
    apart, are one event. Non-finite values are events of another kind and are left out.

    This is a threshold, not a test. Layers of many independent elements raise no false alarm. False
    alarms are frequent in a layer of a single element, where this detector is of no use, in small
    layers with heavy tails, and where a factor common to the whole layer varies by more than a
    fifth from step to step, because it does not average out. Measured rates: docs/error-rates.md.

    Returns one row per event: onset, peak, end (steps of the first, largest and last flagged
    point), height (largest surprise; infinite where Adam remembers nothing), adam_rms (at the
    peak). Raises ValueError for steps that do not increase, values that `gradient_surprise` refuses
    and options out of range.
    """
    if not (math.isfinite(threshold) and threshold > 1):
        raise ValueError(f"threshold must be above 1 (a healthy gradient), got {threshold}")
    if merge < 0:
        raise ValueError(f"merge must be 0 steps or more, got {merge}")
    if min_history < 1:
        raise ValueError(f"min_history must be 1 update or more, got {min_history}")
    steps, values = checked_series(step, adam_rms, "adam_rms")
    usable = np.isfinite(values)
    steps, values = steps[usable], values[usable]
    updates = steps - first_update + 1
    heights = gradient_surprise(values, beta2, updates)
    index = stale_points(heights, updates, threshold, min_history)
    begin = begin_events(index, steps[index], np.zeros(index.size, dtype=bool), merge)
    rows = [
        _event(steps, values, heights, part) for part in np.split(index, begin[1:]) if part.size
    ]
    return pd.DataFrame(rows, columns=list(EVENTS)).astype(EVENTS)


def stale_points(
    heights: FloatArray, updates: IntArray, threshold: float, min_history: int
) -> IntArray:
    """Return the indices of the flagged points."""
    return np.flatnonzero((heights >= threshold) & (updates > min_history))


def _event(
    steps: IntArray, values: FloatArray, heights: FloatArray, part: IntArray
) -> tuple[int, int, int, float, float]:
    peak = part[int(np.argmax(heights[part]))]
    return steps[part[0]], steps[peak], steps[part[-1]], heights[peak], values[peak]
