"""The bend of a learning curve, which is not to be taken for noise."""

import numpy as np

from stabkit.detect.robust import MAD_TO_STD, FloatArray

# Shares of the series in which the distance to the end falls e-fold. The last one is a line.
SHARES = np.geomspace(0.02, 50.0, 40)
ROUNDS = 8
LEAST = 1e-9  # scatter, so that a series that lies on its curve divides by no zero


def learning_curve(values: FloatArray, time: FloatArray) -> FloatArray:
    """Return the curve a + b exp(-t / c) that lies nearest to the values, at each of them.

    Nearest is the least sum of absolute distances, so that dips hardly pull the curve. It is close
    to the least: c is one of a few, and a and b are those of least squares, weighted again and
    again by one over the distance.
    """
    since = (time - time[0]) / (time[-1] - time[0])
    shapes = np.exp(-since / SHARES[:, None])  # [shares, evals]
    weights = np.ones_like(shapes)
    for _ in range(ROUNDS):
        middle, level = (_mean(x, weights) for x in (shapes, values))
        spread = _mean((shapes - middle) ** 2, weights)
        slope = _mean((shapes - middle) * (values - level), weights) / spread
        curves = level + slope * (shapes - middle)
        apart = np.abs(values - curves)
        least = MAD_TO_STD * np.median(apart, axis=1, keepdims=True) / 10 + LEAST
        weights = 1 / np.maximum(apart, least)
    nearest: FloatArray = curves[apart.sum(axis=1).argmin()]
    return nearest


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted mean of each row [rows, 1]."""
    mean: FloatArray = (values * weights).sum(axis=1, keepdims=True) / weights.sum(
        axis=1, keepdims=True
    )
    return mean
