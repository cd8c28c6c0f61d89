"""The record of a run as the parts of a diagnosis read it: each table once, and few are kept."""

from functools import cached_property

import numpy as np
import pandas as pd

from stabkit.analyze.kept_tables import Tables
from stabkit.analyze.learning_rate import learning_rate
from stabkit.analyze.series_spikes import Series
from stabkit.detect.lr_restarts import restarts
from stabkit.detect.spikes import MIN_HISTORY
from stabkit.store.reader import StoredRun


class Record:
    """The tables of a run, and what more than one part of a diagnosis needs of them."""

    def __init__(self, run: StoredRun, tables: Tables | None = None) -> None:
        self.stored = run
        self._kept = tables or Tables()

    @property
    def tables(self) -> StoredRun:
        """The run, for values that a diagnosis does not keep; each table is read once."""
        return self._kept.of(self.stored)

    @cached_property
    def evals(self) -> pd.DataFrame:
        """The rows of `StoredRun.evals` without the samples' answers."""
        return self.tables.evals().drop(columns="correct")

    @cached_property
    def names(self) -> list[str]:
        """The names of all scalars."""
        return sorted(map(str, self.tables.scalars()["name"].unique()))

    @cached_property
    def restarts(self) -> list[int]:
        """The steps at which the learning rate restarts (`detect.lr_restarts.restarts`)."""
        return restarts(learning_rate(self.tables.scalars()))

    def series(self, names: list[str]) -> dict[str, Series]:
        """Return steps and values of scalars that have enough values to find a spike."""
        table = self.tables.scalars()
        found = {name: table[table["name"] == name] for name in names}
        return {
            name: (rows["step"].to_numpy(), rows["value"].to_numpy())
            for name, rows in found.items()
            if np.isfinite(rows["value"]).sum() > MIN_HISTORY
        }
