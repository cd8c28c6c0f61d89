"""What was found in the losses of a run: a part of its `Diagnosis`."""

from functools import cached_property

import numpy as np
import pandas as pd

from stabkit.analyze import loss_events
from stabkit.analyze.lr_restarts import spikes_by_restarts
from stabkit.analyze.overlap import not_covered
from stabkit.analyze.record import Record
from stabkit.analyze.series_spikes import Series
from stabkit.detect import find_bursts
from stabkit.detect.bursts import burst_gap
from stabkit.store.names import losses


class LossFound:
    """Spikes, departures and unrest of all losses. Each is found when it is first used."""

    examined = ("names", "_every_spike", "_spikes", "departures")

    def __init__(self, record: Record) -> None:
        self._record = record

    @cached_property
    def names(self) -> list[str]:
        """The names of the losses that were recorded."""
        return losses(self._record.names)

    @property
    def series(self) -> dict[str, Series]:
        """Steps and values of the losses that have enough values to find a spike."""
        return self._record.series(self.names)

    @property
    def of_level(self) -> dict[str, Series]:
        """Those whose level is judged (`loss_events.of_level`)."""
        return loss_events.of_level(self.series)

    @cached_property
    def _every_spike(self) -> pd.DataFrame:
        series = self.series
        found = loss_events.loss_spikes(series, self._record.tables)
        spikes = find_bursts(found, burst_gap(steps for steps, _ in series.values()))
        return spikes.assign(
            long=spikes["ratio"].isin(found.loc[found["long"].astype(bool), "ratio"])
        )

    @cached_property
    def _spikes(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The spikes that no restart of the learning rate explains, and the others."""
        return spikes_by_restarts(self._every_spike, self._record.restarts, self.series)

    @property
    def spikes(self) -> pd.DataFrame:
        """Rows of `find_bursts` on the spikes of all losses; a series stands for a layer.

        `long`: the ratio is that of a long rise to the best level before. Those that a restart of
        the learning rate explains are in `at_restarts`.
        """
        return self._spikes[0]

    @cached_property
    def departures(self) -> pd.DataFrame:
        """Losses that left their best level for good (`loss_events.departures`)."""
        return loss_events.departures(self.of_level)

    @cached_property
    def above_best(self) -> pd.DataFrame:
        """Losses that ended above their best level; no verdict rests on them."""
        return loss_events.above_best(self.series, self.departures)

    @property
    def at_restarts(self) -> pd.DataFrame:
        """Spikes that restarts of the learning rate explain (`Diagnosis.at_restarts`)."""
        columns = {"first": "series", "onset": "onset", "end": "end", "ratio": "size"}
        return self._spikes[1][[*columns]].rename(columns=columns)

    def unrest(self, collapses: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `find_loss_unrest` that no other event covers (`Diagnosis.unrest`).

        Spikes that a restart of the learning rate explains cover it too.
        """
        found, spikes = loss_events.unrest(self.of_level), self._every_spike
        kept = [found[:0]]
        for name, rows in found.groupby("series", sort=False):
            left = self.departures[self.departures["series"] == name]
            named = [name in str(first).split(", ") for first in spikes["first"]]
            others = [left, spikes[np.array(named, dtype=bool)], collapses]
            kept.append(not_covered(rows, others))
        return pd.concat(kept)
