"""Find everything in a run once; `diagnoses` does it for all runs of a folder.

A diagnosis keeps what was found, which is small: events, levels, a few numbers. It reads each table
once. Few tables stay in memory (`kept_tables`), so thousands of runs need no more than a few.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from stabkit.analyze import collapse_events, loss_events
from stabkit.analyze.accuracy_found import AccuracyFound
from stabkit.analyze.blank_series import blank_series
from stabkit.analyze.gradient_found import GradientFound
from stabkit.analyze.kept_tables import Tables
from stabkit.analyze.loss_found import LossFound
from stabkit.analyze.nonfinite import last_nonfinite, names_of, nonfinite_entries
from stabkit.analyze.notes import noted
from stabkit.analyze.record import Record
from stabkit.analyze.refused_series import refused
from stabkit.analyze.verdict import UNSTABLE, verdict
from stabkit.analyze.what_was_judged import Judged
from stabkit.detect.collapse import SPREADS
from stabkit.rundir import TABLES, Note
from stabkit.store.gaps import gaps
from stabkit.store.reader import StoredRun

BROKE_OFF = ("failed", "lost")  # how a run stands that ended before its end


class Diagnosis:
    """What was found in one run: `accuracy`, `loss`, `gradients`, what concerns all, the verdict.

    Each property is computed when it is first used, and only once. `metric` is the evaluation that
    is searched for dips and drifts; by default the one that `judged_metric` chooses. The diagnoses
    of several runs may share `tables`.
    """

    examined = ("_collapsed", "stuck", "unrest", "_nonfinite", "judged", "verdict")

    def __init__(
        self, run: StoredRun, metric: str | None = None, tables: Tables | None = None
    ) -> None:
        self.stored = run
        self._record = Record(run, tables)
        self.accuracy = AccuracyFound(self._record, metric)
        self.loss = LossFound(self._record)
        self.gradients = GradientFound(self._record)

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

    @property
    def tables(self) -> StoredRun:
        """The run, for values that a diagnosis does not keep; each table is read once."""
        return self._record.tables

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the rows of `StoredRun.evals` without the samples' answers."""
        frame = self._record.evals
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    @cached_property
    def _collapsed(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return collapse_events.collapsed_and_stuck(self.tables, self.accuracy.metric)

    @property
    def collapses(self) -> pd.DataFrame:
        """Signs of collapse, one row for each signal and stretch (`collapsed_and_stuck`)."""
        return self._collapsed[0]

    @cached_property
    def stuck(self) -> pd.DataFrame:
        """Losses that never fell (`loss_events.stuck`); the chance level of our own is known.

        A loss that left its best level had fallen.
        """
        if "loss_relative" in self._record.names:
            return self._collapsed[1]
        found, left = loss_events.stuck(self.loss.of_level), self.loss.departures["series"]
        return found[~found["series"].isin(left)]

    @cached_property
    def unrest(self) -> pd.DataFrame:
        """Stretches in which the accuracy or a loss swings far more than before; `series` names it.

        Rows of `find_unrest` and `find_loss_unrest`, without those that other events cover.
        """
        losses = self.loss.unrest(self.collapses)
        both = [self.accuracy.unrest(self.collapses), losses]
        return pd.concat(both, ignore_index=True)[[*losses.columns]]

    @property
    def at_restarts(self) -> pd.DataFrame:
        """Dips, drifts and loss spikes that restarts of the learning rate explain, by onset.

        Columns: series, onset, end, size (the depth of a dip or drift, the ratio of a loss spike).
        """
        both = pd.concat([self.accuracy.at_restarts, self.loss.at_restarts])
        return both.sort_values("onset", ignore_index=True)

    @cached_property
    def _nonfinite(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return nonfinite_entries(self.tables, self.loss.names)

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
        return max(last, last_nonfinite(self.tables, {*self.loss.names, *named}))

    @property
    def overflows(self) -> list[dict[str, Any]]:
        """Entries for gradient norms that were not finite and recovered, as in a skipped step."""
        return self._nonfinite[1]

    @cached_property
    def notes(self) -> list[Note]:
        """What people noted on steps of the run, and what its record tells (`noted`)."""
        return noted(self.tables)

    @cached_property
    def _blank(self) -> dict[str, list[str]]:
        norms, metric = self.gradients.norms, self.accuracy.metric
        return blank_series(self.tables, self.loss.names, norms, metric)

    @cached_property
    def _gaps(self) -> dict[str, list[str]]:
        return {}

    def gaps(self, *tables: str) -> list[str]:
        """Return the steps whose rows are missing, in words; by default from every table.

        With them, the steps in which a judged series is blank (`blank_series`).
        """
        for table in tables or TABLES:
            if table not in self._gaps:
                self._gaps[table] = [*gaps(self.tables, [table]), *self._blank.get(table, [])]
        return [text for table in tables or TABLES for text in self._gaps[table]]

    @cached_property
    def judged(self) -> Judged:
        """What the run was judged on, and what it lacks."""
        of_losses = tuple(self.loss.series)
        found = self.gradients
        return Judged(
            metric=self.accuracy.metric,
            evals=0 if refused(self.accuracy.dips) else len(self.accuracy.evals),
            losses=of_losses,
            short=() if of_losses else tuple(self.loss.names),
            norms=tuple(found.series),
            layers=len(found.layers) if found.watched and not refused(found.spikes) else 0,
            is_logged=len(self.tables.logged_accuracies()) > 0,
            features=bool({*SPREADS} & {*self._record.names}),
        )

    @cached_property
    def verdict(self) -> str:
        """One of `stabkit.analyze.verdict.VERDICTS`."""
        found = self.gradients
        falls = len(self.accuracy.dips) + len(self.accuracy.drifts)
        return verdict(
            judged=self.judged.enough and not self._unread,
            lost=len(self.nonfinite) + len(self.loss.departures),
            collapses=len(self.collapses),
            unstable_signs=falls + len(self.loss.spikes) + len(self.unrest),
            bursts=sum(map(len, (found.bursts_that_count, found.swells, found.growths))),
            outliers=len(self.accuracy.outliers),
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
        searched = (self.accuracy.dips, self.gradients.spikes, self.loss.spikes)
        return [why for found in searched if (why := refused(found))]

    @property
    def _unread(self) -> bool:
        """Whether a detector refused a series, or rows are missing of steps that were trained."""
        return bool(self.left_out or self.gaps())

    def __repr__(self) -> str:
        return f"Diagnosis({str(self.path)!r})"

    @property
    def _parts(self) -> tuple["Diagnosis", Record, AccuracyFound, LossFound, GradientFound]:
        return self, self._record, self.accuracy, self.loss, self.gradients

    def examine(self) -> "Diagnosis":
        """Find everything now, while the tables are in memory."""
        for part in (self.accuracy, self.loss, self.gradients, self):
            for name in part.examined:
                getattr(part, name)
        return self

    def found(self) -> list[dict[str, Any]]:
        """Return what was found so far, without the tables: the cached values of each part."""
        return [
            {k: v for k, v in vars(part).items() if _is_cached(part, k)} for part in self._parts
        ]

    def take(self, found: list[dict[str, Any]]) -> None:
        """Take over what another diagnosis of the run found (`found`)."""
        for part, values in zip(self._parts, found, strict=True):
            vars(part).update(values)


def _is_cached(part: object, name: str) -> bool:
    return isinstance(getattr(type(part), name, None), cached_property)
