"""The noise of an accuracy at each evaluation. It becomes several times smaller during a training.

One scale for a whole run is that of its quiet end, and the larger noise of the start then looks
like dips. Where the answer of each sample is known, the answers that flip from one evaluation to
the next tell most of the noise: if a share f of n answers flips, each on its own, the variance of
the accuracy is f / n times a constant. So f / n is the shape of the noise over time. The residuals
around the trend tell its size.
"""

import numpy as np

from stabkit.detect.noise_changes import one_noise
from stabkit.detect.robust import (
    AR,
    AR_SCALE,
    MAD_TO_STD,
    STD_WITHIN_3,
    BoolArray,
    FloatArray,
    residual_scale,
    samples_told,
    two_sided_residual,
)

FLIPS_OVER = 9  # evaluations whose median is the share of flips: a dip of four does not move it
SIZE_OVER = 41  # evaluations that tell how much larger the noise is here than the flips say
FLIPS_COUNT = 20  # evaluations that the flips count for beside them
NEAR = 21  # evaluations that tell which residuals stand out
# Evaluations on either side of a change of the noise that get the larger of the two noises. Where
# the change is found too early, large noise before a drop of the learning rate looks like a dip.
UNSURE = 8
# The least AR(1) coefficient that noise is taken to have: recorded runs have .3 to .8. One estimate
# serves the whole run. It scatters by .15, and is too low where the noise is slower than ten
# evaluations, which looks like trend. Noise that is slower than assumed looks like dips.
LEAST_AR = 0.5
# The largest AR(1) coefficient that noise is taken to have. Coefficients of .8 and .9 can hardly be
# told apart: the autocorrelation of the residuals differs by a third of its standard error. But the
# noise computed from .9 is a third larger, and would hide falls of eleven points.
MOST_AR = 0.8
SHAPE_OVER = 31  # evaluations that tell the local noise where answers are not known
WHOLE_COUNTS = 10  # evaluations that the whole run counts for beside them


def flip_variances(correct: BoolArray) -> FloatArray:
    """Return f / n [evals] of answers [evals, n]: f is the share unlike the evaluation before.

    The first evaluation takes the f of the second. f is at least half an answer: no flip among few
    samples does not mean no noise.
    """
    n = correct.shape[1]
    flips = np.count_nonzero(correct[1:] != correct[:-1], axis=1)
    first = flips[:1] if flips.size else np.zeros(len(correct))
    variances: FloatArray = np.maximum(np.concatenate([first, flips]), 0.5) / n**2
    return variances


def local_noise(values: FloatArray, variances: FloatArray | None) -> tuple[FloatArray, float]:
    """Return the standard deviation [evals] and the AR(1) coefficient of the noise around a trend.

    `variances` [evals]: those of `flip_variances`, or None where answers are not known. Then the
    residuals alone tell how the noise changes, with more error. The coefficient is one for the
    whole run: it scatters too much to be told locally.
    """
    residual = two_sided_residual(values)
    if residual.size < 2:
        return np.zeros(values.size), 0.0
    residual = residual - np.median(residual)
    if variances is None:
        parts = _by_noise(residual)
        shape = np.concatenate([_shape(part) for part in parts])
        some = ~_mostly_zero(residual)
    else:
        shape = np.sqrt(_median_around(variances, FLIPS_OVER))[1:-1]
        some = np.ones(shape.size, dtype=bool)
    ratio = np.divide(residual, shape, out=np.zeros(residual.size), where=shape > 0)
    scale, shown, ar = residual_scale(ratio[some])
    shown = max(shown, float(np.interp(MOST_AR, AR, AR_SCALE)))
    size: FloatArray | float = scale
    if variances is not None:
        parts = _by_noise(ratio)
        size = np.concatenate([_size(part) for part in parts])
    noise = _larger_near_cuts(shape * size / shown, parts)
    return np.concatenate([noise[:1], noise, noise[-1:]]), min(max(ar, LEAST_AR), MOST_AR)


def least_noise(values: FloatArray, variances: FloatArray | None, min_depth: float) -> float:
    """Return the noise that a series has at least: a fifth of `min_depth`, or that of rounding.

    With less noise than a fifth a dip of `min_depth` passes every bar anyway. Accuracies in whole
    percents have rounding errors of .29 points, and those of 20 samples of 1.4, which the residuals
    of a quiet stretch do not show. Where the answers are known (`variances`) nothing was rounded.
    """
    samples = samples_told(values) if variances is None else 0
    return max(min_depth / 5, 1 / samples / 12**0.5 if samples else 0.0)


def noise_outside(
    values: FloatArray, variances: FloatArray | None, outside: BoolArray
) -> tuple[FloatArray, float]:
    """Return `local_noise` of the values `outside` [evals].

    The values between them get the larger noise of both sides: it is not known which of the two a
    dip before a drop of the learning rate has.
    """
    at = np.flatnonzero(outside)
    if not at.size:
        return np.zeros(values.size), 0.0
    kept = None if variances is None else variances[at]
    noise, ar = local_noise(values[at], kept)
    before = np.maximum(np.searchsorted(at, np.arange(values.size), side="right") - 1, 0)
    after = np.minimum(np.searchsorted(at, np.arange(values.size)), at.size - 1)
    return np.maximum(noise[before], noise[after]), ar


def difference_noise(values: FloatArray, variances: FloatArray | None) -> FloatArray:
    """Return a first guess of the noise [evals], from the differences of neighbors alone."""
    if values.size < 2:
        return np.zeros(values.size)
    steps = np.diff(values)
    steps = np.abs(steps - np.median(steps)) * MAD_TO_STD / 2**0.5
    if variances is None:
        noise = _median_around(steps, SHAPE_OVER)
        return np.concatenate([noise[:1], noise])
    shape = np.sqrt(_median_around(variances, FLIPS_OVER))
    sizes = [np.full(part.size, np.median(part)) for part in _by_noise(steps / shape[1:])]
    guess: FloatArray = shape * np.concatenate([sizes[0][:1], *sizes])
    return guess


def _by_noise(residual: FloatArray) -> list[FloatArray]:
    """Return the residuals cut where their noise changes at once.

    Those that stand out are cut off, so that a dip is no stretch of large noise.
    """
    sizes = np.abs(residual)
    sizes = np.minimum(sizes, 3 * MAD_TO_STD * _median_around(sizes, SHAPE_OVER))
    return [residual[first:stop] for first, stop in one_noise(sizes)]


def _larger_near_cuts(noise: FloatArray, parts: list[FloatArray]) -> FloatArray:
    """Return the noise, raised near a cut between two parts to that of the noisier part."""
    larger = noise.copy()
    for cut in np.cumsum([part.size for part in parts])[:-1]:
        near = slice(max(cut - UNSURE, 0), cut + UNSURE)
        larger[near] = np.maximum(noise[near], noise[cut - 1 : cut + 1].max())
    return larger


def _size(ratio: FloatArray) -> FloatArray:
    """Return the local root mean square of the rises, which dips do not make larger."""
    scale, _, _ = residual_scale(ratio)
    bound = 3 * np.maximum(scale, MAD_TO_STD * _median_around(np.abs(ratio), NEAR))
    squares, count = _squares_around(ratio, (ratio > 0) & (ratio <= bound), SIZE_OVER)
    size: FloatArray = np.sqrt((squares + FLIPS_COUNT * scale**2) / (count + FLIPS_COUNT))
    return size


def _shape(residual: FloatArray) -> FloatArray:
    """Return the local root mean square of the residuals that do not stand out."""
    near = MAD_TO_STD * _median_around(np.abs(residual), SHAPE_OVER)
    squares, count = _squares_around(residual, np.abs(residual) <= 3 * near, SHAPE_OVER)
    whole = MAD_TO_STD * float(np.median(np.abs(residual)))
    shape: FloatArray = np.sqrt((squares + WHOLE_COUNTS * whole**2) / (count + WHOLE_COUNTS))
    return shape


def _mostly_zero(residual: FloatArray) -> BoolArray:
    """Return where most residuals around are 0, as in a quiet stretch of rounded accuracies.

    Such a stretch does not tell the noise of the others.
    """
    from scipy import ndimage  # slow to import, and not needed before the first dip

    zeros = ndimage.uniform_filter1d((residual == 0).astype(np.float64), SHAPE_OVER)
    mostly: BoolArray = zeros > 0.5
    return mostly


def _median_around(values: FloatArray, over: int) -> FloatArray:
    """Return the median of `over` values around each, of fewer near the ends."""
    from scipy import ndimage  # slow to import, and not needed before the first dip

    median: FloatArray = ndimage.median_filter(values, min(over, values.size), mode="nearest")
    return median


def _squares_around(
    values: FloatArray, counted: BoolArray, over: int
) -> tuple[FloatArray, FloatArray]:
    """Return the sum of squares of `over` values around each that are counted, and their number."""
    at = np.arange(values.size)
    first, stop = np.maximum(at - over // 2, 0), np.minimum(at + over // 2 + 1, values.size)
    kept = np.where(counted, values / STD_WITHIN_3, 0.0)
    squares = np.concatenate([[0.0], np.cumsum(kept**2)])
    count = np.concatenate([[0.0], np.cumsum(counted)])
    return np.maximum(squares[stop] - squares[first], 0.0), count[stop] - count[first]
