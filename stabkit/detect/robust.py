"""What all detectors share: checks of series, stretches, medians, noise scales."""

import math
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAD_TO_STD = 1.4826  # 1 / normal.ppf(3/4): the MAD of normal noise times this is its std
# Std of a standard normal cut at +-3. Divided by it, the trimmed estimate below is unbiased.
STD_WITHIN_3 = 0.9866
UNITS, DIFFERENT = 3, 8  # of the last digit that was written; distances of values
FEW_DIFFERENT, OFTEN = 3, 10  # distances; values for each, on average
# Samples that accuracies tell, at most; how near to whole numbers hits must be where shares were
# printed with three digits.
MOST_TOLD, EXACTLY = 200, 0.1
PERCENT = 100
ZEROS = 5  # values: a series that is exactly 0 for so long at its end holds nothing any more
# For the AR(1) coefficients `AR`: the lag-1 autocorrelation of the residuals in `noise_scale`, and
# their standard deviation relative to that of the noise (means of 300 simulations of 100 values,
# half_width 5). The medians follow slow noise, so both are smaller than those of the noise itself.
AR = (0.0, 0.25, 0.5, 0.8, 0.9)
AR_LAG1 = (-0.095, 0.096, 0.265, 0.417, 0.448)
AR_SCALE = (1.0, 0.98, 0.92, 0.69, 0.5)


def checked_series(
    step: ArrayLike, value: ArrayLike, value_name: str
) -> tuple[IntArray, FloatArray]:
    """Return steps and values as 1-D arrays.

    Raises ValueError unless steps are whole and strictly increasing and both have one length.
    """
    raw, values = np.asarray(step), np.asarray(value, dtype=np.float64)
    if raw.ndim != 1 or raw.shape != values.shape:
        raise ValueError(
            f"step and {value_name} must be 1-D and of one length, got shapes "
            f"{raw.shape} and {values.shape}"
        )
    whole = np.isfinite(raw) & (raw == np.floor(raw)) if raw.dtype.kind == "f" else None
    if raw.size and (raw.dtype.kind not in "iuf" or (whole is not None and not whole.all())):
        raise ValueError(f"step must hold whole numbers, got dtype {raw.dtype}: {raw[:3]}…")
    steps = raw.astype(np.int64)
    wrong = np.flatnonzero(np.diff(steps) <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"step must be strictly increasing, got {steps[i + 1]} at index {i + 1} "
            f"after {steps[i]}: sort the series and drop duplicates"
        )
    return steps, values


def check_accuracy(steps: IntArray, accuracy: FloatArray) -> None:
    """Raise ValueError if an accuracy is neither a fraction nor NaN, such as one in percent."""
    outside = np.flatnonzero((accuracy < 0) | (accuracy > 1))
    if outside.size:
        i = int(outside[0])
        raise ValueError(
            f"accuracy must be a fraction in 0..1 or NaN, got {accuracy[i]} at step {steps[i]}"
        )


def samples_told(accuracy: FloatArray) -> int:
    """Return the number of samples of which all accuracies are shares; 0 if they tell none.

    It is told by the smallest distance of two of them, which is one sample, or a whole percent that
    they were rounded to. A few round numbers are taken for whole percents. Of more than `MOST_TOLD`
    samples, rounding matters little.
    """
    apart = np.diff(np.unique(np.round(accuracy, 4)))
    samples = round(1 / float(apart.min())) if apart.size else 0
    if apart.size < DIFFERENT and samples and PERCENT % samples == 0:
        samples = PERCENT
    hits = accuracy * samples
    fits = 1 < samples <= MOST_TOLD and np.all(np.abs(hits - np.round(hits)) < EXACTLY)
    return samples if fits else 0


def rounded_by(values: FloatArray) -> float:
    """Return how large a distance may be that comes from the rounding of printed values."""
    return UNITS * unit_of(values)


def unit_of(values: FloatArray) -> float:
    """Return the last digit that was written of printed values; 0 if they were not rounded.

    It is the smallest distance of two values. Fewer than `DIFFERENT` distances do not show how
    values were rounded, unless `FEW_DIFFERENT` or more values recur `OFTEN` times: else it is 0.
    """
    finite = values[np.isfinite(values)]
    apart = np.diff(np.unique(finite))
    recur = apart.size >= FEW_DIFFERENT and finite.size >= OFTEN * apart.size
    return float(apart.min()) if apart.size >= DIFFERENT or recur else 0.0


def ratio_of(log: float) -> float:
    """Return e to the power of a difference of logarithms; the largest number instead of more."""
    return math.exp(min(log, math.log(sys.float_info.max)))


def zeros_since(values: FloatArray) -> int | None:
    """Return the index from which all values are exactly 0; None if fewer than `ZEROS` are.

    None too if no other value comes before.
    """
    others = np.flatnonzero(values != 0)
    since = int(others[-1]) + 1 if others.size else values.size
    return since if values.size - since >= ZEROS else None


def stretches(flags: BoolArray) -> list[tuple[int, int]]:
    """Return the first index, and the one behind the last, of every stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))


def median_of_sorted(ordered: FloatArray) -> FloatArray:
    """Return the medians over the last axis of values that are sorted along it.

    With few values this is several times faster than numpy's median.
    """
    n = ordered.shape[-1]
    middle: FloatArray = (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2
    return middle


def difference_scale(values: FloatArray) -> float:
    """Return the standard deviation of uncorrelated noise, from the MAD of successive differences.

    A difference of two independent values has twice their variance, hence the root of 2.
    """
    if values.size < 2:
        return 0.0
    steps = np.diff(values)
    return MAD_TO_STD * float(np.median(np.abs(steps - np.median(steps)))) / 2**0.5


def noise_scale(values: FloatArray, half_width: int = 5) -> tuple[float, float]:
    """Return the standard deviation and the AR(1) coefficient of the noise around a smooth trend.

    Each value is compared with the mean of two medians: of `half_width` values before it and of as
    many after it. A linear trend cancels exactly, and a value is not part of its own reference.
    (In a centered running median a value on a steep curve would be its own median, and the curve
    would seem free of noise.)

    The scale starts as 1.4826 MAD and is refined to the standard deviation of the residuals within
    3 of it. This keeps the resistance of the MAD and halves its sampling variance. The medians
    take noise slower than the window for trend, so both results are corrected by what the residuals
    of simulated AR(1) noise show on average (`AR`). One estimate of the coefficient scatters by
    about .15.
    """
    scale, shown, ar = residual_scale(two_sided_residual(values, half_width))
    return scale / shown, ar


def residual_scale(residual: FloatArray) -> tuple[float, float, float]:
    """Return what `noise_scale` learns from residuals of `two_sided_residual`.

    Their own scale, the share of the noise's standard deviation that they show, and the AR(1)
    coefficient of the noise.
    """
    if residual.size < 2:
        return 0.0, 1.0, 0.0
    residual = residual - np.median(residual)
    scale = MAD_TO_STD * float(np.median(np.abs(residual)))
    if scale == 0.0:
        return 0.0, 1.0, 0.0
    # Outliers become 0, not +-3 scales: a dip is a row of equal outliers, which would otherwise
    # look like autocorrelated noise.
    inside = np.where(np.abs(residual) <= 3 * scale, residual, 0.0)
    kept = int(np.count_nonzero(np.abs(residual) <= 3 * scale))
    refined = float(np.sqrt(np.sum(inside**2) / kept)) / STD_WITHIN_3
    lag1 = float(np.sum(inside[1:] * inside[:-1]) / np.sum(inside**2))
    return refined, float(np.interp(lag1, AR_LAG1, AR_SCALE)), float(np.interp(lag1, AR_LAG1, AR))


def two_sided_residual(values: FloatArray, half_width: int = 5) -> FloatArray:
    """Return the residuals of all values but the two ends, scaled to the variance of the noise.

    Near the ends both medians are of as many values as there are on the shorter side.
    """
    size = values.size
    reach = np.minimum(np.minimum(np.arange(size), np.arange(size)[::-1]), half_width)
    out = np.full(size, np.nan)
    for width in range(1, int(reach.max(initial=0)) + 1):
        at = np.flatnonzero(reach == width)
        windows = sliding_window_view(values, width)
        before, after = np.median(windows[at - width], axis=1), np.median(windows[at + 1], axis=1)
        # Variance of the median of `width` normal values, in units of theirs: 1 for one value, pi /
        # 2 / width for many, within 5 % between. The reference is the mean of two such medians.
        median_variance = (np.pi / 2) / (width + np.pi / 2 - 1)
        out[at] = (values[at] - (before + after) / 2) / np.sqrt(1 + median_variance / 2)
    return out[reach > 0]


def median_interval(values: FloatArray) -> tuple[float, float]:
    """Return an interval that covers the median with at least 95 %.

    The bounds are two order statistics. The number of values below the median is binomial with
    probability 1/2 for every distribution, so the interval needs no assumption; ties only make it
    cover more. Infinite on both sides below six values, which cover too little.
    """
    from scipy import stats  # slow to import, and rarely needed

    ordered = np.sort(values)
    # The largest rank that a binomial stays at or below with a chance of at most .025: `ppf` gives
    # the first rank with at least that much.
    rank = int(stats.binom.ppf(0.025, ordered.size, 0.5)) if ordered.size else 0
    if stats.binom.cdf(rank, ordered.size, 0.5) > 0.025:
        rank -= 1
    if rank < 0 or not ordered.size:
        return -np.inf, np.inf
    return float(ordered[rank]), float(ordered[ordered.size - 1 - rank])
