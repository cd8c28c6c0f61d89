"""Read run folders as tidy pandas frames. A table is read when it is asked for."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.rundir import LeftOutWarning, Note, RunDir, Status, find_runs, left_out, read_file
from stabkit.store.accuracies import logged_accuracies
from stabkit.store.schema import KEYS, TABLES
from stabkit.store.tables import last_part, read_table
from stabkit.store.writer import unpack_bits
from stabkit.yamlio import flat, parse_yaml


@dataclass(frozen=True)
class StoredRun:
    """One run folder, written by `stabkit train`, by a Monitor in another loop, or by `convert`.

    Damaged or foreign files in it are left out, and a LeftOutWarning names each.
    """

    path: Path
    called: str = ""
    _kept: dict[Any, pd.DataFrame] | None = field(default=None, repr=False, compare=False)
    _until: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name of the folder; its path, if several runs that were loaded share the name.

        Bytes that are not text are shown as escapes, because no table could hold them.
        """
        name = self.called or self.path.name or self.path.resolve().name  # `.` has no name
        return name.encode("utf-8", "backslashreplace").decode()

    @property
    def dir(self) -> RunDir:
        """The folder, for its files other than the tables."""
        return RunDir(self.path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as dotted keys; empty when the run has none.

        Raises ValueError or OSError that names a damaged file.
        """
        file = self.dir.config_file
        if not file.exists():
            return {}
        try:
            content = parse_yaml(read_file(file).decode())
        except UnicodeDecodeError:
            raise ValueError(f"{file}: is not UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{file}: holds no settings")
        return dict(flat(content))

    def keeping(self) -> "StoredRun":
        """Return the same run, which keeps each table that it reads; for one pass over the run."""
        return self if self._kept is not None else replace(self, _kept={})

    def as_of_now(self) -> "StoredRun":
        """Return the same run without the rows that are written from now on.

        So a reader finds the same rows each time while the run trains.
        """
        return replace(self, _until={name: last_part(self.path / name) for name in TABLES})

    def until(self, table: str) -> str | None:
        """Return the name of the last part of a table that is read; None if all parts are."""
        return self._until.get(table)

    def signals(self, signals: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Return step, layer, depth and the `signals`, in order of step and depth.

        `signals` is one name or several; by default all that were recorded. Raises KeyError for
        any other, with the names that were recorded.
        """
        names = [signals] if isinstance(signals, str) else signals
        return self._table("layers", None if names is None else [*KEYS, *names])

    def scalars(self) -> pd.DataFrame:
        """Return the columns step, name, value."""
        return self._table("scalars")

    def scalar(self, name: str) -> "pd.Series[float]":
        """Return one series of the run, by step.

        Raises KeyError, with the names that were recorded, if the run has scalars but not this one.
        """
        frame = self.scalars()
        found = frame[frame["name"] == name].set_index("step")["value"]
        if found.empty and not frame.empty:
            recorded = ", ".join(sorted(map(str, frame["name"].unique())))
            raise KeyError(
                f"{self.path}: no scalar {name!r} was recorded; those that were: {recorded}"
            )
        return found

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the `evals` table in step order; `correct` is packed, with one bit per sample.

        A run without any has those of `logged_accuracies`.
        """
        frame = self._table("evals")
        if frame.empty and len(logged := self.logged_accuracies()):
            frame = logged
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    def logged_accuracies(self) -> pd.DataFrame:
        """Return the scalars that are accuracies of an evaluation, as rows of `evals`.

        Empty if the run has evaluations, or is a converted log, where convert has decided already.
        """
        scalars = self.scalars()
        if len(self._table("evals")) or self._is_converted():
            scalars = scalars[:0]
        return logged_accuracies(scalars)

    def _is_converted(self) -> bool:
        try:
            return "converted" in self.dir.read_meta()
        except (OSError, ValueError, RecursionError):
            return False

    def correct(self, metric: str, k: int | None = None) -> NDArray[np.bool_] | None:
        """Return the correctness [evals, n] of each sample at each evaluation.

        None if n changed midway or is not known, as in a run converted from a log. None with a
        LeftOutWarning if bits are missing. Raises ValueError if the metric was evaluated with
        several k and none is chosen.
        """
        frame = self.evals(metric)
        found = sorted(frame["k"].unique().tolist())
        if k is None and len(found) > 1:
            raise ValueError(
                f"{self.path}: {metric} has k = {', '.join(map(str, found))}: name one"
            )
        frame = frame if k is None else frame[frame["k"] == k]
        if frame.empty or frame["n"].nunique() > 1 or frame["correct"].isna().all():
            return None
        n = int(frame["n"].iloc[0])
        wrong = [len(bits or b"") != -(-n // 8) for bits in frame["correct"]]
        if any(wrong):
            at = frame["step"].to_numpy()[wrong]
            why = f"at step {at[0]} they are not those of {n} samples"
            left_out(self.path / "evals", why, f"bits of {metric}")
            return None
        return np.stack([unpack_bits(bits, n) for bits in frame["correct"]])

    def status(self) -> Status | None:
        """Return the status; None if there is none or it is damaged."""
        try:
            return self.dir.read_status()
        except (OSError, ValueError) as error:
            left_out(self.dir.status_file, str(error).removeprefix(f"{self.dir.status_file}: "))
            return None

    def log_entries(self) -> list[dict[str, Any]]:
        """Return the entries of the log: start, resume, non-finite values and others."""
        try:
            return self.dir.read_entries()
        except OSError as error:
            left_out(self.dir.events_file, f"not readable ({error.strerror})")
            return []

    def notes(self) -> list[Note]:
        """Return what people noted with `stabkit note`, in the order of the steps."""
        try:
            return self.dir.read_notes()
        except OSError as error:
            left_out(self.dir.notes_file, f"not readable ({error.strerror})")
            return []

    def log(self) -> pd.DataFrame:
        """Return what the process did: time, kind, step and whatever else an entry carries."""
        return pd.DataFrame(self.log_entries(), columns=None)

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        if self._kept is None:
            return read_table(self.path / name, name, columns, self.until(name))
        key = (name, tuple(columns or ()))
        if key not in self._kept:
            self._kept[key] = read_table(self.path / name, name, columns, self.until(name))
        return self._kept[key].copy(deep=False)


@dataclass(frozen=True)
class StoredRuns:
    """All runs below a folder."""

    path: Path
    items: tuple[StoredRun, ...]

    def as_of_now(self) -> "StoredRuns":
        """Return the same runs, with `StoredRun.as_of_now` for those that may still be written."""
        return replace(
            self,
            items=tuple(
                run if (status := run.status()) and status.state == "done" else run.as_of_now()
                for run in self
            ),
        )

    def __iter__(self) -> Iterator[StoredRun]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def factors(self) -> list[str]:
        """Return the settings that differ between the runs, without `runtime.`, in config order."""
        keys = dict.fromkeys(key for run in self for key in run.settings)
        varies = [k for k in keys if len({repr(run.settings.get(k)) for run in self}) > 1]
        return [key for key in varies if not key.startswith("runtime.")]


def load(folder: str | Path) -> StoredRuns:
    """Load every run at or below `folder`. Raises FileNotFoundError if there is no such folder.

    Two kinds of run are left out with a LeftOutWarning: a run with a damaged configuration, and a
    copy, which has the settings and seed of another run. Counted twice, one training would look
    like evidence from two. The copy that trained further is kept; of two that trained as far, that
    with more rows that can be read, or else the first by name.
    """
    path = Path(folder)
    kept: dict[str, StoredRun] = {}
    for run in map(StoredRun, find_runs(path)):
        try:
            settings = run.settings
        except (OSError, ValueError) as error:
            left_out(run.path, str(error))
            continue
        decisive = {k: v for k, v in settings.items() if not k.startswith("runtime.")}
        # Without a seed, equal settings do not mean the same run.
        key = repr(decisive) if "seed" in settings else str(run.path)
        other = kept.setdefault(key, run)
        if other is not run:
            kept[key], copy = (run, other) if _further(run) > _further(other) else (other, run)
            left_out(copy.path, f"it has the settings and the seed of {kept[key].path}")
    items = sorted(kept.values(), key=lambda run: run.path)
    names = Counter(run.name for run in items)
    return StoredRuns(
        path, tuple(_named_by_path(run, path) if names[run.name] > 1 else run for run in items)
    )


def _further(run: StoredRun) -> tuple[bool, int, int]:
    status = run.dir.last_status()
    with warnings.catch_warnings():  # what the kept one lacks is told where it is read
        warnings.simplefilter("ignore", LeftOutWarning)
        rows = len(run.evals()) + len(run.scalars()) + len(run.signals(["grad_norm"]))
    return (status.state == "done", status.step, rows) if status else (False, 0, rows)


def _named_by_path(run: StoredRun, folder: Path) -> StoredRun:
    return replace(run, called=run.path.relative_to(folder).as_posix())


def open_run(folder: str | Path) -> StoredRun:
    """Open one run folder. Raises FileNotFoundError if it is not one."""
    path = Path(folder)
    if find_runs(path) != [path]:
        raise FileNotFoundError(f"{path}: not a run folder (no config.yaml, no tables in it)")
    return StoredRun(path)
