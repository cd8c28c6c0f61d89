"""Diagnose all runs of a folder, in several processes where there are many."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.kept_tables import Tables
from stabkit.analyze.workers import WORTH_IT, each
from stabkit.store.reader import StoredRun, StoredRuns


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
        """Return the settings that differ between the runs (`StoredRuns.factors`)."""
        return StoredRuns(self.path, tuple(diagnosis.stored for diagnosis in self)).factors()

    def that_finished(self) -> tuple["Diagnoses", int]:
        """Return the runs that count in means of final accuracies, and how many are left out.

        These are the runs that came to their end; all of them if none did.
        """
        ended = tuple(diagnosis for diagnosis in self if diagnosis.finished)
        return (Diagnoses(self.path, ended), len(self) - len(ended)) if ended else (self, 0)


def diagnose(runs: StoredRuns, processes: int = 1, metric: str | None = None) -> Diagnoses:
    """Return a diagnosis of every run.

    `metric`: the evaluation that is searched for dips and drifts, instead of the one that each
    run's names suggest. A diagnosis finds things when they are first used. With several `processes`
    and many runs it finds them now. Raises UnknownMetricError, before anything is searched.
    """
    tables = Tables()
    found = Diagnoses(runs.path, tuple(Diagnosis(run, metric, tables) for run in runs))
    check_metric(found, metric)
    if processes > 1 and len(runs) >= WORTH_IT:
        items = [(run, metric) for run in runs]
        seen: dict[bytes, pd.DataFrame] = {}
        for diagnosis, values in zip(found, each(_examined, items, processes), strict=True):
            diagnosis.take(_shared(values, seen))
    return found


class UnknownMetricError(KeyError):
    """No run has evaluations of the name that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its message in quotation marks


def check_metric(runs: Iterable[Diagnosis], metric: str | None) -> None:
    """Raise UnknownMetricError unless one of the runs has evaluations of this name.

    None is always right. Runs are read up to the first that has them.
    """
    if metric is None:
        return
    names: set[str] = set()
    for run in runs:
        names.update(map(str, run.evals()["metric"].unique()))
        if metric in names:
            return
    listed = ", ".join(sorted(names)) or "none"
    raise UnknownMetricError(f"no evaluation {metric!r} was recorded; those that were: {listed}")


def _shared(value: Any, seen: dict[bytes, pd.DataFrame]) -> Any:
    """Return the equal table of an earlier run: most are empty, and all layers are the same."""
    if isinstance(value, dict):
        return {key: _shared(part, seen) for key, part in value.items()}
    if isinstance(value, list):
        return [_shared(part, seen) for part in value]
    if isinstance(value, tuple):
        make = getattr(value, "_make", tuple)  # a named tuple keeps its names
        return make(_shared(part, seen) for part in value)
    if isinstance(value, pd.DataFrame):
        return seen.setdefault(hashlib.sha256(pickle.dumps(value)).digest(), value)
    return value


def _examined(item: tuple[StoredRun, str | None]) -> list[dict[str, Any]]:
    """Return what a diagnosis finds, without the tables in which it is found."""
    return Diagnosis(*item).examine().found()
