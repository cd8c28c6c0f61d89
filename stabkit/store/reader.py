"""Run folders in, tidy pandas out. Lazy: a table is read when it is asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.rundir import RunDir, Status, find_runs, left_out, read_file
from stabkit.store.schema import KEYS, TABLES
from stabkit.store.tables import last_part, read_table
from stabkit.store.writer import unpack_bits
from stabkit.yamlio import parse_yaml

AnyRun = TypeVar("AnyRun", bound="Run")


@dataclass(frozen=True)
class Run:
    """One run folder, whoever wrote it: our loop, or a Monitor in somebody else's.

    What is damaged or foreign in it is left out and named in a LeftOutWarning.
    """

    path: Path
    called: str = ""
    _kept: dict[Any, pd.DataFrame] | None = field(default=None, repr=False, compare=False)
    _until: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's name; below a folder with another run of that name the path from there.

        Bytes in it that are no text are escapes here, since no table could hold them.
        """
        name = self.called or self.path.name
        return name.encode("utf-8", "backslashreplace").decode()

    @property
    def dir(self) -> RunDir:
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
        return dict(_flatten(content, ""))

    def keeping(self) -> "Run":
        """The same run, which reads each table once and keeps it: for one pass over it."""
        return self if self._kept is not None else replace(self, _kept={})

    def as_of_now(self) -> "Run":
        """The same run without the rows that are written from now on: whoever reads its tables
        several times while it trains finds the same in them."""
        return replace(self, _until={name: last_part(self.path / name) for name in TABLES})

    def until(self, table: str) -> str | None:
        """The last part of a table that is read; None: all that are there."""
        return self._until.get(table)

    def signals(self, signals: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns step, layer, depth, then the `signals`, or all recorded; in step and depth order.

        Raises KeyError for a signal that was not recorded.
        """
        return self._table("layers", None if signals is None else [*KEYS, *signals])

    def scalars(self) -> pd.DataFrame:
        """Columns step, name, value."""
        return self._table("scalars")

    def scalar(self, name: str) -> "pd.Series[float]":
        """One series of the run, by step; empty when it was not recorded."""
        frame = self.scalars()
        return frame[frame["name"] == name].set_index("step")["value"]

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Columns of the `evals` table, in step order; `correct` is one bit a sample, packed."""
        frame = self._table("evals")
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    def correct(self, metric: str, k: int | None = None) -> NDArray[np.bool_] | None:
        """[evals, n] correctness of each sample at each evaluation.

        None if n changed midway or is not known, as in a run converted from a log; None as well,
        with a LeftOutWarning, when bits are missing. Raises ValueError when the metric was
        evaluated with several k and none is chosen.
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
        """None when there is none, or one that is damaged."""
        try:
            return self.dir.read_status()
        except (OSError, ValueError) as error:
            left_out(self.dir.status_file, str(error).removeprefix(f"{self.dir.status_file}: "))
            return None

    def event_log(self) -> list[dict[str, Any]]:
        try:
            return self.dir.read_events()
        except OSError as error:
            left_out(self.dir.events_file, f"not readable ({error.strerror})")
            return []

    def log(self) -> pd.DataFrame:
        """Return what the process did: time, kind, step and whatever else an entry carries."""
        return pd.DataFrame(self.event_log(), columns=None)

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        if self._kept is None:
            return read_table(self.path / name, name, columns, self.until(name))
        key = (name, tuple(columns or ()))
        if key not in self._kept:
            self._kept[key] = read_table(self.path / name, name, columns, self.until(name))
        return self._kept[key].copy(deep=False)


@dataclass(frozen=True)
class Runs:
    """Every run below a folder; the frames are those of `Run` with a column `run` in front."""

    path: Path
    items: tuple[Run, ...]

    def as_of_now(self) -> "Runs":
        """`Run.as_of_now` of those that may still be written."""
        return replace(
            self,
            items=tuple(
                run if (status := run.status()) and status.state == "done" else run.as_of_now()
                for run in self
            ),
        )

    def __iter__(self) -> Iterator[Run]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def table(self) -> pd.DataFrame:
        """One row a run: name, state, step, every setting that differs between runs, last kNN."""
        rows = []
        factors = self.factors()
        for run in self:
            status = run.status()
            knn = run.evals("knn_heldout")["value"]
            rows.append(
                {"run": run.name, "state": status.state if status else None}
                | {"step": status.step if status else None}
                | {key: run.settings.get(key) for key in factors}
                | {"knn_last": knn.iloc[-1] if len(knn) else None}
            )
        return pd.DataFrame(rows)

    def factors(self) -> list[str]:
        """The settings that differ between these runs, execution details aside, in config order."""
        keys = dict.fromkeys(key for run in self for key in run.settings)
        varies = [k for k in keys if len({repr(run.settings.get(k)) for run in self}) > 1]
        return [key for key in varies if not key.startswith("runtime.")]

    def signals(self) -> pd.DataFrame:
        return joined(self.items, lambda run: run.signals())

    def scalars(self) -> pd.DataFrame:
        return joined(self.items, lambda run: run.scalars())

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        return joined(self.items, lambda run: run.evals(metric))

    def log(self) -> pd.DataFrame:
        """Return the log of each run (`Run.log`)."""
        return joined(self.items, lambda run: run.log())


def joined(runs: Sequence[AnyRun], read: Callable[[AnyRun], pd.DataFrame]) -> pd.DataFrame:
    """Return the frames that `read` gives of the runs as one, with the run's name in front."""
    frames = [frame.assign(run=run.name) for run in runs if len(frame := read(run))]
    if not frames:
        columns = read(runs[0]).columns if runs else []
        return pd.DataFrame(columns=["run", *columns])
    whole = pd.concat(frames, ignore_index=True)
    return whole[["run", *(c for c in whole.columns if c != "run")]]


def load(folder: str | Path) -> Runs:
    """Every run at or below `folder`. Raises FileNotFoundError when there is no such folder.

    A LeftOutWarning names a run whose configuration is damaged, and one of the settings and seed
    of another: counted twice, one training would pass for evidence from two. Of a run and its copy
    the one that is further is taken, else the first by name.
    """
    path = Path(folder)
    kept: dict[str, Run] = {}
    for run in map(Run, find_runs(path)):
        try:
            settings = run.settings
        except (OSError, ValueError) as error:
            left_out(run.path, str(error))
            continue
        telling = {k: v for k, v in settings.items() if not k.startswith("runtime.")}
        # without a seed the settings do not tell whether it is the same run
        key = repr(telling) if "seed" in settings else str(run.path)
        other = kept.setdefault(key, run)
        if other is not run:
            kept[key], copy = (run, other) if _further(run) > _further(other) else (other, run)
            left_out(copy.path, f"it has the settings and the seed of {kept[key].path}")
    items = sorted(kept.values(), key=lambda run: run.path)
    names = Counter(run.name for run in items)
    return Runs(
        path, tuple(_told_apart(run, path) if names[run.name] > 1 else run for run in items)
    )


def _further(run: Run) -> tuple[bool, int]:
    status = run.dir.last_status()
    return (status.state == "done", status.step) if status else (False, 0)


def _told_apart(run: Run, folder: Path) -> Run:
    return replace(run, called=run.path.relative_to(folder).as_posix())


def open_run(folder: str | Path) -> Run:
    """One run folder. Raises FileNotFoundError when it is not one."""
    path = Path(folder)
    if find_runs(path) != [path]:
        raise FileNotFoundError(f"{path}: not a run folder (no config.yaml, no tables in it)")
    return Run(path)


def _flatten(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
