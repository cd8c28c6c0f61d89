"""Healthy accuracies without noise, over the share of the run that has passed, in 0..1."""

from collections.abc import Callable

import numpy as np

from stabkit.detect.robust import FloatArray

TRENDS: dict[str, Callable[[FloatArray], FloatArray]] = {
    # share of the run that has passed, in 0..1 -> accuracy of a healthy run
    "flat": lambda t: np.full_like(t, 0.5),
    "linear": lambda t: 0.2 + 0.4 * t,
    "saturating": lambda t: 0.1 + 0.6 * (1 - np.exp(-3.3 * t)),
    "sigmoid": lambda t: 0.1 + 0.6 / (1 + np.exp(-14 * (t - 0.4))),
    "plateau": lambda t: 0.1 + 0.5 * (1 - np.exp(-9 * t)) + 0.2 * np.clip((t - 0.55) * 3, 0, 1),
}


def rise(t: FloatArray) -> FloatArray:
    """Return a curve that rises fast from .2 and is level at .55 from the first third on."""
    return 0.55 - (0.55 - 0.2) * np.exp(-12 * t)


def staircase(t: FloatArray, drops: tuple[float, ...], jump: float) -> FloatArray:
    """Return a level curve that jumps up by `jump` wherever the learning rate drops."""
    return rise(t) + sum((jump * _settled(t, drop) for drop in drops), np.zeros_like(t))


def sag_then_drop(t: FloatArray, begin: float, drop: float, sag: float, jump: float) -> FloatArray:
    """Return a plateau that sags slowly from `begin` on, by `sag`, until the rate drops at `drop`.

    There the accuracy jumps up, by the sag and `jump` more. Nothing falls at once: it is no dip.
    """
    sagging = np.clip((t - begin) / (drop - begin), 0, 1)
    return rise(t) - sag * sagging + (sag + jump) * _settled(t, drop)


def overshoot(t: FloatArray, drop: float, jump: float, sag: float) -> FloatArray:
    """Return a curve that jumps up where the rate drops, and then loses `sag` slowly for good."""
    after = np.clip((t - drop) / (1 - drop), 0, 1)
    return rise(t) + jump * _settled(t, drop) - sag * after


def cool_down(t: FloatArray, begin: float, gain: float) -> FloatArray:
    """Return a level curve that rises ever faster from `begin` on, as in a linear cool-down."""
    return rise(t) + gain * np.clip((t - begin) / (1 - begin), 0, 1) ** 2


def cosine(t: FloatArray) -> FloatArray:
    """Return a curve that rises as a learning rate on a cosine falls: slow, fast, slow."""
    return 0.25 + 0.4 * (1 - np.cos(np.pi * t)) / 2


def _settled(t: FloatArray, drop: float) -> FloatArray:
    """Return 0 before `drop` and 1 from soon after it on."""
    return np.where(t < drop, 0.0, 1 - 0.5 * np.exp(-(t - drop) / 0.01))
