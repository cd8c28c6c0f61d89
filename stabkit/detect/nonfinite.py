"""Stretches of steps in which values are not finite, and where they began; numpy only."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, IntArray


def nonfinite_stretches(bad: ArrayLike, within: bool = False) -> tuple[IntArray, IntArray]:
    """Return the first and the last index of every stretch of true values in `bad`, [n] booleans.

    A stretch is one event, and it begins at its first index. `within`: the value before `bad[0]`
    was bad too. Then the first stretch returned began earlier, and its first index is -1. Its last
    index is -1 as well if `bad[0]` is good.
    """
    flags = np.concatenate([[False, within], np.asarray(bad, dtype=bool), [False]])
    begins, ends = flags[1:-1] & ~flags[:-2], flags[1:-1] & ~flags[2:]
    return np.flatnonzero(begins) - 1, np.flatnonzero(ends) - 1


WEIGHTS, LOSS, GRADIENTS = "param_norm", "loss", "grad_norm"
OF_GRADIENTS = (GRADIENTS, "grad_max", "nonfinite_count")


def where_it_began(
    bad: Mapping[str, BoolArray], forward: Collection[str] = (), loss: bool = False
) -> tuple[str, list[int]]:
    """Return what was not finite first, and the numbers of its layers, the likeliest first.

    `bad[signal]` [layers], in depth order: whether a value of the first bad step is not finite. The
    `forward` signals are of activations. `loss`: whether the loss is not finite.

    A step computes from weights activations, then the loss, the gradients, and the update. A value
    that is not finite makes those after it not finite, so the earliest is the cause. The loss is in
    no layer. Activations spread to deeper layers, gradients to shallower ones.
    """
    first = [WEIGHTS, *forward]
    order = {name: bad[name] for name in first if name in bad}
    order[GRADIENTS] = _any(bad, OF_GRADIENTS)
    order |= {name: flags for name, flags in bad.items() if name not in order}
    signal = next((name for name, flags in order.items() if np.any(flags)), LOSS)
    if loss and signal not in first:
        return LOSS, []
    layers = np.flatnonzero(order[signal]).tolist() if signal in order else []
    return signal, layers[::-1] if signal == GRADIENTS else layers


def _any(bad: Mapping[str, BoolArray], names: Sequence[str]) -> BoolArray:
    """Return where any of the signals is bad, [layers]; [0] if none is there."""
    found = [bad[name] for name in names if name in bad]
    return np.any(found, axis=0) if found else np.zeros(0, dtype=bool)
