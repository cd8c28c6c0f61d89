"""What was found in the gradient norms of a run: a part of its `Diagnosis`."""

from functools import cached_property

import numpy as np
import pandas as pd

from stabkit.analyze import gradient_events
from stabkit.analyze.gradient_events import Raised
from stabkit.analyze.record import Record
from stabkit.analyze.series import gradient_norms
from stabkit.analyze.series_spikes import Series
from stabkit.detect import find_bursts, layer_onsets
from stabkit.detect.bursts import GAP
from stabkit.detect.spikes import MIN_HISTORY


class GradientFound:
    """Spikes, bursts, swells and growth of gradient norms. Each is found when it is first used.

    The norms are those of the layers, or of the whole model where no layer has one.
    """

    examined = (
        *("layers", "norms", "_raised", "bursts", "bursts_that_count", "swells", "growths"),
        *("onsets", "layers_without_gradient", "_recorded"),
    )

    def __init__(self, record: Record) -> None:
        self._record = record

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Name and depth of each layer that has a gradient."""
        rows = self._record.tables.signals(["grad_norm"])
        measured = rows[rows["grad_norm"].notna()][["layer", "depth"]].drop_duplicates()
        return measured.assign(layer=measured["layer"].astype(str)).reset_index(drop=True)

    @cached_property
    def norms(self) -> list[str]:
        """The names of recorded gradient norms of the whole model; empty if layers have some."""
        return [] if len(self.layers) else gradient_norms(self._record.names)

    @property
    def series(self) -> dict[str, Series]:
        """Steps and values of `norms` that have enough values to find a spike."""
        return self._record.series(self.norms)

    @cached_property
    def _raised(self) -> Raised:
        """What raises the gradient norms: all of it needs every layer, or the whole model."""
        if self.norms:
            return gradient_events.raised_series(self.series, self._record.tables)
        return gradient_events.raised_layers(self._record.tables)

    @property
    def spikes(self) -> pd.DataFrame:
        """Rows of `find_layer_spikes` on the gradient norms of the layers, or of the model.

        `stands_out` tells those of bursts that chance would not bring.
        """
        return self._raised.spikes

    @cached_property
    def bursts(self) -> pd.DataFrame:
        """Rows of `find_bursts`: spikes of several layers as one event."""
        return find_bursts(self.spikes, self._gap)

    @cached_property
    def bursts_that_count(self) -> pd.DataFrame:
        """The bursts that count for the verdict: those that chance would not bring."""
        return find_bursts(self.spikes[self.spikes["stands_out"].astype(bool)], self._gap)

    @cached_property
    def swells(self) -> pd.DataFrame:
        """Rows of `find_bursts` on swells: those of several layers as one event.

        Without those that a spike of the same layer explains.
        """
        return find_bursts(self._raised.swells, self._gap)

    @cached_property
    def growths(self) -> pd.DataFrame:
        """Rows of `find_bursts` on levels that grow for long (`detect.growth`), as `swells`."""
        return find_bursts(self._raised.growths, self._gap)

    @cached_property
    def onsets(self) -> pd.DataFrame:
        """Rows of `layer_onsets`: the spikes that form the bursts, one row per layer."""
        return layer_onsets(self.spikes, self._gap)

    @cached_property
    def layers_without_gradient(self) -> dict[str, int]:
        """Layers whose gradient is missing from some step to the end, and that step."""
        return gradient_events.layers_without_gradient(self._record.tables)

    @cached_property
    def _recorded(self) -> tuple[int, int, int] | None:
        """First and last step at which a spike can be found, and the steps between two values."""
        steps = self._record.tables.signals(["grad_norm"])["step"].unique()
        if self.norms:
            found = [series[0] for series in self.series.values()]
            steps = np.unique(np.concatenate(found)) if found else steps[:0]
        if len(steps) <= MIN_HISTORY:
            return None
        every = int(np.median(np.diff(np.sort(steps))))
        return int(steps[MIN_HISTORY]), int(steps[-1]), every

    @property
    def watched(self) -> tuple[int, int] | None:
        """First step at which a spike can be found, and the last; None with too few steps."""
        return self._recorded[:2] if self._recorded else None

    @property
    def every(self) -> int:
        """The steps from one recorded gradient norm to the next; 1 where none is recorded."""
        return self._recorded[2] if self._recorded else 1

    @property
    def _gap(self) -> int:
        """The most steps between two onsets of one burst (`burst_gap`)."""
        return max(GAP, self.every)
