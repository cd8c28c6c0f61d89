"""Find the spikes of all layers of a run, those too that only show in many layers at once."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.spike_scorer import SpikeScorer
from stabkit.detect.spikes import BAR, FLOOR, MIN_HISTORY, WINDOW, Scored, spike_rows

TOGETHER = 5  # steps within which the layers of a burst spike
SHARE = 0.5  # of the layers, that must spike together
FEWEST = 4  # layers; of fewer, too few say the same


def find_layer_spikes(layers: Sequence[tuple[IntArray, FloatArray]]) -> list[pd.DataFrame]:
    """Return the rows of `find_spikes` for each layer, with the spikes that layers share.

    `layers`: steps and values of each, as `usable_series` returns them. A value that nearly passes
    the bars (NEAR and NEAR_REACH of the scorer) is a spike if half of the layers have such a value,
    or a larger one, within five steps. The noise of layers is correlated, so this is little
    stronger evidence than that of one layer: the bar is lower by a quarter, not by the root of
    their number.
    """
    scored = [_scored(*series) for series in layers]
    measured = [one for one in scored if len(one.steps) > MIN_HISTORY]
    shared = steps_shared([one.steps[[p.at for p in one.points]] for one in measured])
    return [spike_rows(_counted(one, shared)) for one in scored]


def _scored(steps: IntArray, values: FloatArray) -> Scored:
    scorer = SpikeScorer(WINDOW, BAR, MIN_HISTORY, FLOOR, near=True)
    return Scored(steps, values, scorer.add(np.log(values)))


def _counted(scored: Scored, shared: IntArray) -> Scored:
    """Leave out the points that are only nearly flagged, and not shared."""
    together = set(shared.tolist())
    points = [p for p in scored.points if not p.near or int(scored.steps[p.at]) in together]
    return scored._replace(points=points)


def steps_shared(raised: Sequence[IntArray]) -> IntArray:
    """Return the steps that lie in a stretch of TOGETHER steps in which many layers are raised.

    `raised`: the steps of each layer. Many are at least SHARE of the layers.
    """
    steps = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *raised]))
    if len(raised) < FEWEST or not steps.size:
        return steps[:0]
    here: BoolArray = np.array([np.isin(steps, own) for own in raised])
    since = np.searchsorted(steps, steps - TOGETHER, side="right")  # first step of each stretch
    shared = np.zeros(len(steps), dtype=bool)
    for i, first in enumerate(since):
        if here[:, first : i + 1].any(axis=1).sum() >= SHARE * len(raised):
            shared[first : i + 1] = True
    return steps[shared]
