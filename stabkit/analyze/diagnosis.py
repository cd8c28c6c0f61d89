"""Find everything in a run once: `Diagnosis` for one run, `diagnose` for all runs of a folder.

A diagnosis keeps what was found, which is small: events, levels, a few numbers. It reads each table
once. Tables stay in memory only while all of them together need less than `BUDGET` bytes, so
thousands of runs need no more memory than a few.
"""

import hashlib
import math
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze import events
from stabkit.analyze.verdict import verdict
from stabkit.analyze.workers import WORTH_IT, each
from stabkit.detect import find_bursts, layer_onsets
from stabkit.detect.dip_rows import MEDIAN_OF
from stabkit.rundir import TABLES
from stabkit.store.gaps import gaps
from stabkit.store.reader import Run, Runs

METRIC = "knn_heldout"
BUDGET = 256 * 2**20  # bytes; a run of 10,000 steps and 20 layers needs about 6 MiB


class Tables:
    """The tables of the runs that were used last, up to `budget` bytes."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._runs: OrderedDict[Path, Run] = OrderedDict()  # ordered by last use
        self._sizes: dict[Path, int] = {}  # without the last run, whose tables are being read

    def of(self, run: Run) -> Run:
        """Return the run together with the tables that were read from it before."""
        if self._runs and (last := next(reversed(self._runs))) != run.path:
            self._sizes[last] = _size(self._runs[last])
            while sum(self._sizes.values()) > self.budget:
                oldest, _ = self._runs.popitem(last=False)
                del self._sizes[oldest]
        if run.path not in self._runs:
            self._runs[run.path] = kept = run.keeping()
            vars(kept)["settings"] = run.settings  # keep what was parsed
        self._sizes.pop(run.path, None)
        self._runs.move_to_end(run.path)
        return self._runs[run.path]


def _size(run: Run) -> int:
    frames = (run._kept or {}).values()
    return sum(int(frame.memory_usage(deep=True).sum()) for frame in frames)


class Diagnosis:
    """What was found in one run. Each property is computed when it is first used, and only once.

    `metric` is the evaluation in which dips and drifts are sought. The diagnoses of several runs
    may share `tables`.
    """

    def __init__(self, run: Run, metric: str = METRIC, tables: Tables | None = None) -> None:
        self.run = run
        self.metric = metric
        self._tables = tables or Tables()

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.settings

    @property
    def tables(self) -> Run:
        """The run, for values that a diagnosis does not keep; each table is read once."""
        return self._tables.of(self.run)

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the rows of `Run.evals` without the samples' answers."""
        frame = self._evals
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    @cached_property
    def _evals(self) -> pd.DataFrame:
        return self.tables.evals().drop(columns="correct")

    @property
    def last_answers(self) -> NDArray[np.bool_] | None:
        """[evals, n]: which samples the last evaluations got right; None if not recorded."""
        if self._falls[2] is None:
            return None
        packed, n = self._falls[2]
        return np.unpackbits(packed, axis=1, count=n).astype(bool)

    @cached_property
    def _falls(self) -> tuple[pd.DataFrame, pd.DataFrame, tuple[NDArray[np.uint8], int] | None]:
        """Dips, drifts and last answers: all three need the answers at every evaluation."""
        # evaluations and answers must come from one reading, because the run may go on training
        seen = events.Accuracy(self.tables.keeping(), self.metric)
        dips, drifts = events.falls(seen)
        if events.refused(dips) or seen.correct is None:
            return dips, drifts, None
        last = np.packbits(seen.correct[-MEDIAN_OF:], axis=1)
        return dips, drifts, (last, seen.correct.shape[1])

    @property
    def dips(self) -> pd.DataFrame:
        """Rows of `find_dips`, with the columns that `events.falls` adds."""
        return self._falls[0]

    @property
    def drifts(self) -> pd.DataFrame:
        """Rows of `find_drift`."""
        return self._falls[1]

    @cached_property
    def spikes(self) -> pd.DataFrame:
        """Rows of `find_spikes` on the gradient norm of every layer."""
        return events.spikes(self.tables)

    @cached_property
    def bursts(self) -> pd.DataFrame:
        """Rows of `find_bursts`: spikes of several layers as one event."""
        return find_bursts(self.spikes)

    @cached_property
    def onsets(self) -> pd.DataFrame:
        """Rows of `layer_onsets`: the spikes that form the bursts, one row a layer."""
        return layer_onsets(self.spikes)

    @cached_property
    def collapses(self) -> pd.DataFrame:
        """Signs of collapse, one row for each signal and stretch (`events.collapses`)."""
        return events.collapses(self.tables)

    @cached_property
    def nonfinite(self) -> list[dict[str, Any]]:
        """The entries of the run's log that report values that were not finite."""
        return [entry for entry in self.run.event_log() if entry.get("kind") == "nonfinite"]

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Name and depth of each layer that has a gradient."""
        rows = self.tables.signals(["grad_norm"])
        measured = rows[rows["grad_norm"].notna()][["layer", "depth"]].drop_duplicates()
        return measured.assign(layer=measured["layer"].astype(str)).reset_index(drop=True)

    @cached_property
    def watched(self) -> tuple[int, int] | None:
        """First step at which a spike can be found, and the last; None with too few steps."""
        steps = self.tables.signals(["grad_norm"])["step"].unique()
        if len(steps) <= events.MIN_HISTORY:
            return None
        return int(steps[events.MIN_HISTORY]), int(steps[-1])

    @cached_property
    def _gaps(self) -> dict[str, list[str]]:
        return {}

    def gaps(self, *tables: str) -> list[str]:
        """Return the steps whose rows are missing, in words; by default from every table."""
        for table in tables or TABLES:
            if table not in self._gaps:
                self._gaps[table] = gaps(self.tables, [table])
        return [text for table in tables or TABLES for text in self._gaps[table]]

    @cached_property
    def level(self) -> float:
        """The median of the last fifth of the evaluations; NaN without any."""
        values = self.evals(self.metric)["value"]
        return events.final_level(values) if len(values) else math.nan

    @cached_property
    def verdict(self) -> str:
        """One of `stabkit.analyze.verdict.VERDICTS`."""
        unjudged = events.refused(self.dips) or events.refused(self.spikes) or self.gaps()
        return verdict(
            len(self.nonfinite),
            len(self.collapses),
            0 if unjudged else len(self.evals(self.metric)),
            len(self.dips) + len(self.drifts),
            len(self.bursts),
        )

    def examine(self) -> "Diagnosis":
        """Find everything now, while the tables are in memory."""
        for name in EXAMINED:
            getattr(self, name)
        return self


EXAMINED = (
    *("_falls", "level"),
    *("collapses", "bursts", "onsets", "layers", "watched"),
    *("nonfinite", "verdict"),
)


@dataclass(frozen=True)
class Diagnoses:
    """The diagnosis of every run below a folder."""

    path: Path
    items: tuple[Diagnosis, ...]

    def __iter__(self) -> Iterator[Diagnosis]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def factors(self) -> list[str]:
        """Return the settings that differ between the runs (`Runs.factors`)."""
        return Runs(self.path, tuple(diagnosis.run for diagnosis in self)).factors()

    def judged_by(self, metric: str) -> "Diagnoses":
        """Return diagnoses of the same runs that seek dips and drifts in `metric`."""
        tables = Tables()
        return Diagnoses(self.path, tuple(Diagnosis(d.run, metric, tables) for d in self))


def diagnose(runs: Runs, processes: int = 1, metric: str = METRIC) -> Diagnoses:
    """Return a diagnosis of every run.

    It finds things when they are first used. With several `processes` and many runs it finds them
    now.
    """
    tables = Tables()
    found = Diagnoses(runs.path, tuple(Diagnosis(run, metric, tables) for run in runs))
    if processes > 1 and len(runs) >= WORTH_IT:
        items = [(run, metric) for run in runs]
        seen: dict[bytes, pd.DataFrame] = {}
        for diagnosis, properties in zip(found, each(_examined, items, processes), strict=True):
            vars(diagnosis).update({k: _shared(value, seen) for k, value in properties.items()})
    return found


def _shared(value: Any, seen: dict[bytes, pd.DataFrame]) -> Any:
    """Return the equal table of an earlier run: most are empty, and all layers are the same."""
    if isinstance(value, tuple):
        return tuple(_shared(part, seen) for part in value)
    if isinstance(value, pd.DataFrame):
        return seen.setdefault(hashlib.sha256(pickle.dumps(value)).digest(), value)
    return value


def _examined(item: tuple[Run, str]) -> dict[str, Any]:
    """Return what a diagnosis finds, without the tables in which it is found."""
    diagnosis = Diagnosis(*item).examine()
    return {k: v for k, v in vars(diagnosis).items() if k not in ("run", "metric", "_tables")}
