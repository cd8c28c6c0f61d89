"""Find everything in a run once; `diagnoses` does it for all runs of a folder.

A diagnosis keeps what was found, which is small: events, levels, a few numbers. It reads each table
once. Few tables stay in memory (`kept_tables`), so thousands of runs need no more than a few.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze import accuracy_events, collapse_events, gradient_events, loss_events
from stabkit.analyze.accuracy_events import Accuracy, Falls, final_count, final_level
from stabkit.analyze.blank_series import blank_series
from stabkit.analyze.kept_tables import Tables
from stabkit.analyze.learning_rate import learning_rate
from stabkit.analyze.lr_restarts import (
    dips_by_restarts,
    drifts_by_restarts,
    restarts,
    spikes_by_restarts,
)
from stabkit.analyze.nonfinite import last_nonfinite, names_of, nonfinite_entries
from stabkit.analyze.notes import noted
from stabkit.analyze.overlap import not_covered
from stabkit.analyze.refused_series import refused
from stabkit.analyze.series import gradient_norms
from stabkit.analyze.series_spikes import Series
from stabkit.analyze.verdict import UNSTABLE, verdict
from stabkit.analyze.what_was_judged import Judged
from stabkit.detect import find_bursts, layer_onsets
from stabkit.detect.bursts import GAP, burst_gap
from stabkit.detect.collapse import SPREADS
from stabkit.detect.dip_rows import MEDIAN_OF
from stabkit.detect.dips import SHORTEST
from stabkit.detect.spikes import MIN_HISTORY
from stabkit.rundir import TABLES, Note
from stabkit.store.accuracies import judged_metric
from stabkit.store.gaps import gaps
from stabkit.store.names import losses
from stabkit.store.reader import StoredRun

BROKE_OFF = ("failed", "lost")  # how a run stands that ended before its end


class Diagnosis:
    """What was found in one run. Each property is computed when it is first used, and only once.

    `metric` is the evaluation that is searched for dips and drifts; by default the one that
    `judged_metric` chooses. The diagnoses of several runs may share `tables`.
    """

    def __init__(
        self, run: StoredRun, metric: str | None = None, tables: Tables | None = None
    ) -> None:
        self.stored = run
        self._asked = metric
        self._tables = tables or Tables()

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def settings(self) -> dict[str, Any]:
        return self.stored.settings

    @cached_property
    def finished(self) -> bool:
        """Whether the run came to its end; a log without a status is taken as it is."""
        status = self.stored.status()
        return status is None or status.state == "done"

    @cached_property
    def metric(self) -> str:
        """The evaluation that is searched for dips and drifts."""
        counts = {str(k): int(v) for k, v in self.evals()["metric"].value_counts().items()}
        return self._asked or judged_metric(counts, SHORTEST)

    @property
    def tables(self) -> StoredRun:
        """The run, for values that a diagnosis does not keep; each table is read once."""
        return self._tables.of(self.stored)

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the rows of `StoredRun.evals` without the samples' answers."""
        frame = self._evals
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    @cached_property
    def _evals(self) -> pd.DataFrame:
        return self.tables.evals().drop(columns="correct")

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
        seen = Accuracy(self.tables.keeping(), self.metric)
        found = accuracy_events.falls(seen)
        if refused(found.dips) or seen.correct is None:
            return found, None
        last = np.packbits(seen.correct[-MEDIAN_OF:], axis=1)
        return found, (last, seen.correct.shape[1])

    @property
    def dips(self) -> pd.DataFrame:
        """Rows of `find_dips`, with the columns that `accuracy_events.falls` adds.

        Those that a restart of the learning rate explains are in `at_restarts`.
        """
        return self._dips_by_restarts[0]

    @property
    def possible_dips(self) -> pd.DataFrame:
        """Rows like those of `find_dips`, of dips below its bar (`search_dips`)."""
        return self._falls[0].possible_dips

    @cached_property
    def confirmed_then(self) -> pd.DataFrame:
        """Dips confirmed while it trained that the whole run does not show (`confirmed_then`)."""
        found = pd.concat([self._falls[0].dips, self.possible_dips])
        return accuracy_events.confirmed_then(Accuracy(self.stored, self.metric), found)

    @property
    def drifts(self) -> pd.DataFrame:
        """Rows of `find_drift`; those that restarts of the rate explain are in `at_restarts`."""
        return self._drifts_by_restarts[0]

    @property
    def outliers(self) -> pd.DataFrame:
        """Rows of `find_outliers`: single evaluations far below those beside them, in no dip."""
        return self._falls[0].outliers

    @cached_property
    def unrest(self) -> pd.DataFrame:
        """Stretches in which the accuracy or a loss swings far more than before; `series` names it.

        Rows of `find_unrest` and `find_loss_unrest`, without those that other events cover. Dips
        and loss spikes that restarts of the learning rate explain cover them too.
        """
        losses = loss_events.unrest(loss_events.of_level(self._series(self.losses)))
        accuracy = self._falls[0].unrest.assign(series=self.metric)
        drifts = self._falls[0].drifts
        ends = drifts["recovery"].fillna(math.inf)
        falls = [self._falls[0].dips, drifts.assign(end=ends), self.collapses]
        kept = [not_covered(accuracy, falls)]
        for name, rows in losses.groupby("series", sort=False):
            left = self.departures[self.departures["series"] == name]
            named = [name in str(first).split(", ") for first in self._loss_spikes["first"]]
            spikes = self._loss_spikes[np.array(named, dtype=bool)]
            kept.append(not_covered(rows, [left, spikes, self.collapses]))
        return pd.concat(kept, ignore_index=True)[[*losses.columns]]

    @cached_property
    def _names(self) -> list[str]:
        return sorted(map(str, self.tables.scalars()["name"].unique()))

    @cached_property
    def losses(self) -> list[str]:
        """The names of the losses that were recorded."""
        return losses(self._names)

    @cached_property
    def norms(self) -> list[str]:
        """The names of recorded gradient norms of the whole model; empty if layers have some."""
        return [] if len(self.layers) else gradient_norms(self._names)

    def _series(self, names: list[str]) -> dict[str, Series]:
        """Return steps and values of scalars that have enough values to find a spike."""
        table = self.tables.scalars()
        found = {name: table[table["name"] == name] for name in names}
        return {
            name: (rows["step"].to_numpy(), rows["value"].to_numpy())
            for name, rows in found.items()
            if np.isfinite(rows["value"]).sum() > MIN_HISTORY
        }

    @cached_property
    def _restarts(self) -> list[int]:
        return restarts(learning_rate(self.tables.scalars()))

    @cached_property
    def _dips_by_restarts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return dips_by_restarts(self._falls[0], self._restarts)

    @cached_property
    def _drifts_by_restarts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        found = self._falls[0]
        if found.drifts.empty:  # the usual case, which needs no rate
            return found.drifts, found.drifts
        return drifts_by_restarts(found, self._restarts)

    @cached_property
    def _spikes_by_restarts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return spikes_by_restarts(self._loss_spikes, self._restarts, self._series(self.losses))

    @property
    def at_restarts(self) -> pd.DataFrame:
        """Dips, drifts and loss spikes that restarts of the learning rate explain, by onset.

        Columns: series, onset, end, size (the depth of a dip or drift, the ratio of a loss spike).
        """
        dips, spikes = self._dips_by_restarts[1], self._spikes_by_restarts[1]
        drifts = self._drifts_by_restarts[1]
        fell = dips.assign(series=self.metric, size=dips["depth"])
        ends = drifts["recovery"].fillna(self._falls[0].steps.max(initial=0))
        sank = drifts.assign(series=self.metric, size=drifts["depth"], end=ends)
        rose = spikes.assign(series=spikes["first"], size=spikes["ratio"])
        both = pd.concat([rows[["series", "onset", "end", "size"]] for rows in (fell, sank, rose)])
        return both.sort_values("onset", ignore_index=True)

    @property
    def loss_spikes(self) -> pd.DataFrame:
        """Rows of `find_bursts` on the spikes of all losses; a series stands for a layer.

        `long`: the ratio is that of a long rise to the best level before. Those that a restart of
        the learning rate explains are in `at_restarts`.
        """
        return self._spikes_by_restarts[0]

    @cached_property
    def _loss_spikes(self) -> pd.DataFrame:
        series = self._series(self.losses)
        found = loss_events.loss_spikes(series, self.tables)
        spikes = find_bursts(found, burst_gap(steps for steps, _ in series.values()))
        return spikes.assign(
            long=spikes["ratio"].isin(found.loc[found["long"].astype(bool), "ratio"])
        )

    @cached_property
    def departures(self) -> pd.DataFrame:
        """Losses that left their best level for good (`loss_events.departures`)."""
        return loss_events.departures(loss_events.of_level(self._series(self.losses)))

    @cached_property
    def stuck(self) -> pd.DataFrame:
        """Losses that never fell (`loss_events.stuck`); the chance level of our own is known."""
        if "loss_relative" in self._names:
            return self._collapsed[1]
        return loss_events.stuck(loss_events.of_level(self._series(self.losses)))

    @cached_property
    def _raised(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Spikes and swells: both need the gradient norm of every layer, or of the whole model."""
        if self.norms:
            return gradient_events.raised_series(self._series(self.norms), self.tables)
        return gradient_events.raised_layers(self.tables)

    @property
    def spikes(self) -> pd.DataFrame:
        """Rows of `find_layer_spikes` on the gradient norms of the layers, or of the model.

        `stands_out` tells those of bursts that chance would not bring.
        """
        return self._raised[0]

    @property
    def layer_swells(self) -> pd.DataFrame:
        """Rows of `find_layer_swells`, without those that a spike of the same layer explains."""
        return self._raised[1]

    @cached_property
    def bursts(self) -> pd.DataFrame:
        """Rows of `find_bursts`: spikes of several layers as one event."""
        return find_bursts(self.spikes, self._gap)

    @cached_property
    def clear_bursts(self) -> pd.DataFrame:
        """The bursts that chance would not bring: they alone count for the verdict."""
        return find_bursts(self.spikes[self.spikes["stands_out"].astype(bool)], self._gap)

    @cached_property
    def swells(self) -> pd.DataFrame:
        """Rows of `find_bursts` on swells: those of several layers as one event."""
        return find_bursts(self.layer_swells, self._gap)

    @cached_property
    def onsets(self) -> pd.DataFrame:
        """Rows of `layer_onsets`: the spikes that form the bursts, one row per layer."""
        return layer_onsets(self.spikes, self._gap)

    @cached_property
    def _collapsed(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return collapse_events.collapsed_and_stuck(self.tables, self.metric)

    @property
    def collapses(self) -> pd.DataFrame:
        """Signs of collapse, one row for each signal and stretch (`collapsed_and_stuck`)."""
        return self._collapsed[0]

    @cached_property
    def _nonfinite(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return nonfinite_entries(self.tables, self.losses)

    @property
    def nonfinite(self) -> list[dict[str, Any]]:
        """Entries, as in the run's log, for losses, weights or gradients that were not finite."""
        return self._nonfinite[0]

    @cached_property
    def nonfinite_until(self) -> int:
        """The last step at which a value that was lost is not finite; -1 if none was lost."""
        if not self.nonfinite:
            return -1
        named = {name for entry in self.nonfinite for name in names_of(entry)}
        last = max(int(entry.get("step") or 0) for entry in self.nonfinite)
        return max(last, last_nonfinite(self.tables, {*self.losses, *named}))

    @property
    def overflows(self) -> list[dict[str, Any]]:
        """Entries for gradient norms that were not finite and recovered, as in a skipped step."""
        return self._nonfinite[1]

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Name and depth of each layer that has a gradient."""
        rows = self.tables.signals(["grad_norm"])
        measured = rows[rows["grad_norm"].notna()][["layer", "depth"]].drop_duplicates()
        return measured.assign(layer=measured["layer"].astype(str)).reset_index(drop=True)

    @cached_property
    def layers_without_gradient(self) -> dict[str, int]:
        """Layers whose gradient is missing from some step to the end, and that step."""
        return gradient_events.layers_without_gradient(self.tables)

    @cached_property
    def _recorded(self) -> tuple[int, int, int] | None:
        """First and last step at which a spike can be found, and the steps between two values."""
        steps = self.tables.signals(["grad_norm"])["step"].unique()
        if self.norms:
            found = [series[0] for series in self._series(self.norms).values()]
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

    @cached_property
    def _blank(self) -> dict[str, list[str]]:
        return blank_series(self.tables, self.losses, self.norms, self.metric)

    @cached_property
    def _gaps(self) -> dict[str, list[str]]:
        return {}

    @cached_property
    def notes(self) -> list[Note]:
        """What people noted on steps of the run, and what its record tells (`noted`)."""
        return noted(self.tables)

    def gaps(self, *tables: str) -> list[str]:
        """Return the steps whose rows are missing, in words; by default from every table.

        With them, the steps in which a judged series is blank (`blank_series`).
        """
        for table in tables or TABLES:
            if table not in self._gaps:
                self._gaps[table] = [*gaps(self.tables, [table]), *self._blank.get(table, [])]
        return [text for table in tables or TABLES for text in self._gaps[table]]

    @cached_property
    def _values(self) -> pd.Series:
        """The accuracies that are searched for dips and drifts."""
        return self.evals(self.metric)["value"]

    @cached_property
    def level(self) -> float:
        """The median of the last fifth of the evaluations; NaN without any."""
        return final_level(self._values) if len(self._values) else math.nan

    @cached_property
    def best(self) -> float:
        """The highest median of as many evaluations in a row as `level` has; NaN without any."""
        count = final_count(self._values)
        return float(self._values.rolling(count).median().max())

    @property
    def steps_in_dips(self) -> int:
        """Steps from the onset of each dip to its recovery, or to the end of the run."""
        return int((self.dips["end"] - self.dips["onset"]).sum())

    @cached_property
    def judged(self) -> Judged:
        """What the run was judged on, and what it lacks."""
        evals = 0 if refused(self.dips) else len(self._values)
        of_losses = tuple(self._series(self.losses))
        return Judged(
            metric=self.metric,
            evals=evals,
            losses=of_losses,
            short=() if of_losses else tuple(self.losses),
            norms=tuple(self._series(self.norms)),
            layers=len(self.layers) if self.watched and not refused(self.spikes) else 0,
            is_logged=len(self.tables.logged_accuracies()) > 0,
            features=bool({*SPREADS} & set(self.tables.scalars()["name"].unique())),
        )

    @cached_property
    def verdict(self) -> str:
        """One of `stabkit.analyze.verdict.VERDICTS`."""
        return verdict(
            judged=self.judged.enough and not self._unread,
            lost=len(self.nonfinite) + len(self.departures),
            collapses=len(self.collapses),
            unstable_signs=sum(
                map(len, (self.dips, self.drifts, self.loss_spikes, self.unrest)),
            ),
            bursts=len(self.clear_bursts) + len(self.swells),
            outliers=len(self.outliers),
            stuck=len(self.stuck),
        )

    @property
    def blew_up(self) -> bool:
        """Whether the run broke off, and showed a sign of instability: it has no final accuracy."""
        stands = self.stored.dir.standing()
        return not self.finished and stands in BROKE_OFF and self.verdict in UNSTABLE

    @property
    def left_out(self) -> list[str]:
        """Why detectors refused series of the run, in words."""
        return [
            why for found in (self.dips, self.spikes, self.loss_spikes) if (why := refused(found))
        ]

    @property
    def _unread(self) -> bool:
        """Whether a detector refused a series, or rows are missing of steps that were trained."""
        return bool(self.left_out or self.gaps())

    def __repr__(self) -> str:
        return f"Diagnosis({str(self.path)!r})"

    def examine(self) -> "Diagnosis":
        """Find everything now, while the tables are in memory."""
        for name in EXAMINED:
            getattr(self, name)
        return self


EXAMINED = (
    *("metric", "_falls", "confirmed_then", "level", "best"),
    *("losses", "_loss_spikes", "departures", "stuck"),
    *("_dips_by_restarts", "_drifts_by_restarts", "_spikes_by_restarts"),
    *(
        "collapses",
        "unrest",
        "_raised",
        "bursts",
        "clear_bursts",
        "swells",
        "onsets",
        "layers",
        "layers_without_gradient",
        "norms",
        "watched",
    ),
    *("_nonfinite", "judged", "verdict"),
)
