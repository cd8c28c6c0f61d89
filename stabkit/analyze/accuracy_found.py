"""What was found in the accuracy of a run: a part of its `Diagnosis`."""

import math
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze import accuracy_events
from stabkit.analyze.accuracy_events import Accuracy, Falls, final_count, final_level
from stabkit.analyze.lr_restarts import (
    dips_by_restarts,
    drifts_by_restarts,
    outliers_by_restarts,
)
from stabkit.analyze.overlap import not_covered
from stabkit.analyze.record import Record
from stabkit.analyze.refused_series import refused
from stabkit.detect.dip_rows import MEDIAN_OF
from stabkit.detect.dips import SHORTEST
from stabkit.store.accuracies import judged_metric


class AccuracyFound:
    """Dips, drifts, outliers and levels of one evaluation. Each is found when it is first used.

    `metric` is the evaluation that is searched; by default the one that `judged_metric` chooses.
    """

    examined = (
        *("metric", "_falls", "_dips", "_drifts", "_outliers"),
        *("confirmed_then", "level", "best"),
    )

    def __init__(self, record: Record, metric: str | None = None) -> None:
        self._record = record
        self._asked = metric

    @cached_property
    def metric(self) -> str:
        """The evaluation that is searched for dips and drifts."""
        counts = {str(k): int(v) for k, v in self._record.evals["metric"].value_counts().items()}
        return self._asked or judged_metric(counts, SHORTEST)

    @property
    def evals(self) -> pd.DataFrame:
        """The evaluations of `metric`, without the samples' answers."""
        evals = self._record.evals
        return evals[evals["metric"] == self.metric].reset_index(drop=True)

    @cached_property
    def level(self) -> float:
        """The median of the last fifth of the evaluations; NaN without any."""
        values = self.evals["value"]
        return final_level(values) if len(values) else math.nan

    @cached_property
    def best(self) -> float:
        """The highest median of as many evaluations in a row as `level` has; NaN without any."""
        values = self.evals["value"]
        return float(values.rolling(final_count(values)).median().max())

    @property
    def last_answers(self) -> NDArray[np.bool_] | None:
        """[evals, n]: which samples the last evaluations got right; None if not recorded."""
        _, answers = self._falls
        if answers is None:
            return None
        packed, n = answers
        return np.unpackbits(packed, axis=1, count=n).astype(bool)

    @cached_property
    def _falls(self) -> tuple[Falls, tuple[NDArray[np.uint8], int] | None]:
        """What fell, and the last answers: both need the answers at every evaluation."""
        # evaluations and answers must come from one reading, because the run may go on training
        seen = Accuracy(self._record.tables.keeping(), self.metric)
        found = accuracy_events.falls(seen)
        if refused(found.dips) or seen.correct is None:
            return found, None
        last = np.packbits(seen.correct[-MEDIAN_OF:], axis=1)
        return found, (last, seen.correct.shape[1])

    @cached_property
    def _dips(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The dips that no restart of the learning rate explains, and the others."""
        return dips_by_restarts(self._falls[0], self._record.restarts)

    @cached_property
    def _drifts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The drifts that no restart of the learning rate explains, and the others."""
        found = self._falls[0]
        if found.drifts.empty:  # the usual case, which needs no rate
            return found.drifts, found.drifts
        return drifts_by_restarts(found, self._record.restarts)

    @cached_property
    def _outliers(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The outliers that no restart of the learning rate explains, and the others."""
        found = self._falls[0]
        if found.outliers.empty:
            return found.outliers, found.outliers
        return outliers_by_restarts(found, self._record.restarts)

    @property
    def dips(self) -> pd.DataFrame:
        """Rows of `find_dips`, with the columns that `accuracy_events.falls` adds.

        Those that a restart of the learning rate explains are in `at_restarts`.
        """
        return self._dips[0]

    @property
    def possible_dips(self) -> pd.DataFrame:
        """Rows like those of `find_dips`, of dips below its bar (`search_dips`)."""
        return self._falls[0].possible_dips

    @cached_property
    def confirmed_then(self) -> pd.DataFrame:
        """Dips confirmed while it trained that the whole run does not show (`confirmed_then`)."""
        found = pd.concat([self._falls[0].dips, self.possible_dips])
        return accuracy_events.confirmed_then(Accuracy(self._record.stored, self.metric), found)

    @property
    def drifts(self) -> pd.DataFrame:
        """Rows of `find_drift`; those that restarts of the rate explain are in `at_restarts`."""
        return self._drifts[0]

    @property
    def outliers(self) -> pd.DataFrame:
        """Rows of `find_outliers`: single evaluations far below those beside them, in no dip.

        Those that a restart of the learning rate explains are in `at_restarts`.
        """
        return self._outliers[0]

    @property
    def steps_in_dips(self) -> int:
        """Steps from the onset of each dip to its recovery, or to the end of the run."""
        return int((self.dips["end"] - self.dips["onset"]).sum())

    @property
    def at_restarts(self) -> pd.DataFrame:
        """Falls that restarts of the learning rate explain (`Diagnosis.at_restarts`)."""
        dips, drifts, alone = self._dips[1], self._drifts[1], self._outliers[1]
        ends = drifts["recovery"].fillna(self._falls[0].steps.max(initial=0))
        falls = [dips, drifts.assign(end=ends), alone.assign(end=alone["onset"])]
        rows = pd.concat([found[["onset", "end", "depth"]] for found in falls])
        rows = rows.rename(columns={"depth": "size"})
        rows.insert(0, "series", self.metric)
        return rows

    def unrest(self, collapses: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `find_unrest` that no fall or collapse covers (`Diagnosis.unrest`).

        Falls that a restart of the learning rate explains cover it too.
        """
        found = self._falls[0]
        ends = found.drifts["recovery"].fillna(math.inf)
        falls = [found.dips, found.drifts.assign(end=ends), collapses]
        return not_covered(found.unrest.assign(series=self.metric), falls)
