"""Tell, while a run trains, which spikes stand out from the noise of the values before them."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect.layer_tails import FEW_LAYERS, WIDTHS, tail_bar
from stabkit.detect.loss_tail import level_and_noise_before
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.spike_scorer import FEW
from stabkit.detect.spikes import WINDOW

MOST_EXPECTED = 0.001  # values as high that chance brings in as many values as there were steps
SHORTEST = 1000  # steps; a run is taken to be at least as long
TAIL = 1000  # values before a spike that tell the tail of the noise
HISTORY = TAIL + 2 * WINDOW  # values from which all that is judged follows
KEPT = HISTORY + 500  # values; a spike that has lasted longer than 500 is no longer judged


class OnlineTails:
    """Judges spikes by the values before them, as `layer_tails` does in the whole run.

    Heights are the distances of log values from the median of the 100 before, in robust deviations
    of these. Two series are judged: the highest and the mean of all layers at each step. Means of
    each over up to 16 steps are judged too. The tail is that of the last 1,000 values before the
    spike that belong to no spike. The bar grows with the number of steps so far, so that a healthy
    run of any length seldom passes it once: fewer than .001 values as high are expected in so many
    steps.
    """

    def __init__(self) -> None:
        self._begin(())

    def _begin(self, layers: tuple[str, ...]) -> None:
        self._layers = layers
        self._steps = np.zeros(0, dtype=np.int64)
        self._logs = np.zeros((0, len(layers)))
        self._flagged = np.zeros(0, dtype=bool)

    def add(
        self,
        layers: Sequence[str],
        steps: IntArray,
        values: FloatArray,
        flagged: Collection[int],
    ) -> None:
        """Add values [steps, layers]; `flagged` are the steps that belong to a spike of a layer.

        A step that was added before may be flagged later. Values that are not finite or not above 0
        count as not measured. Other layers than before begin a new history.
        """
        if tuple(layers) != self._layers:
            self._begin(tuple(layers))
        usable = np.isfinite(values) & (values > 0)
        logs = np.log(np.where(usable, values, np.nan))[usable.any(axis=1)]
        steps = steps[usable.any(axis=1)]
        self._steps = np.append(self._steps, steps)[-KEPT:]
        self._logs = np.concatenate([self._logs, logs])[-KEPT:]
        self._flagged = np.append(self._flagged, np.zeros(len(steps), dtype=bool))[-KEPT:]
        self._flagged |= np.isin(self._steps, list(flagged))

    def stands_out(self, first: int, last: int) -> bool:
        """Return whether the spike from step `first` to step `last` is higher than chance brings.

        False if there are fewer than 30 healthy values before it: so few show no tail.
        """
        begin, end = np.searchsorted(self._steps, [first, last + 1]).tolist()
        since = max(0, begin - TAIL)
        heights = _heights(self._logs[max(0, begin - HISTORY) : end])[since - end :]
        usual = ~self._flagged[since:begin]
        chance = MOST_EXPECTED / max(first, SHORTEST)
        return any(
            _passes(values, usual, width, chance) for values in _series(heights) for width in WIDTHS
        )


def _heights(logs: FloatArray) -> FloatArray:
    """Return how high each value [values, layers] lies above those before; NaN where unknown."""
    frame = pd.DataFrame(logs)
    level, noise = level_and_noise_before(frame)
    errors = frame - level
    known = errors.notna().rolling(WINDOW, min_periods=1).sum().shift(1)
    heights: FloatArray = (errors / (noise * (1 + FEW / known))).to_numpy()
    return heights


def _series(heights: FloatArray) -> list[FloatArray]:
    """Return the highest of all layers at each step, and the mean of four or more."""
    known = np.isfinite(heights)
    highest = np.where(known, heights, -np.inf).max(axis=1)
    if heights.shape[1] < FEW_LAYERS:
        return [highest]
    total = np.where(known, heights, 0.0).sum(axis=1)
    return [highest, np.where(known.any(axis=1), total / np.maximum(1, known.sum(axis=1)), -np.inf)]


def _passes(values: FloatArray, usual: BoolArray, width: int, chance: float) -> bool:
    """Return whether a mean of `width` values of the spike passes the bar.

    `usual` [values before the spike]: those that belong to no spike; the other values are its own.
    """
    begin = len(usual)
    if min(begin, len(values) - begin) < width:
        return False
    before = sliding_window_view(values[:begin], width).mean(axis=1)
    healthy = before[sliding_window_view(usual, width).all(axis=1) & np.isfinite(before)]
    of_spike = sliding_window_view(values[begin:], width).mean(axis=1)
    return bool((of_spike >= tail_bar(healthy, chance)).any())
