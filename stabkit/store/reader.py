"""Run folders in, tidy pandas out. Lazy: a table is read when it is asked for."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stabkit.rundir import RunDir, find_runs
from stabkit.store.schema import TABLES, VERSION, version_of
from stabkit.store.writer import unpack_bits
from stabkit.yamlio import read_yaml


@dataclass(frozen=True)
class Run:
    """One run folder, whoever wrote it: our loop, or a Monitor in somebody else's."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def dir(self) -> RunDir:
        return RunDir(self.path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as dotted keys; empty when the run has none."""
        if not self.dir.config_file.exists():
            return {}
        return dict(_flatten(read_yaml(self.dir.config_file), ""))

    def signals(self) -> pd.DataFrame:
        """Columns step, layer, depth, then one a signal of a layer; in step and depth order."""
        return _read(self.path / "layers", "layers").sort_values(["step", "depth"], kind="stable")

    def scalars(self) -> pd.DataFrame:
        """Columns step, name, value."""
        return _read(self.path / "scalars", "scalars").sort_values("step", kind="stable")

    def scalar(self, name: str) -> "pd.Series[float]":
        """One series of the run, by step; empty when it was not recorded."""
        frame = self.scalars()
        return frame[frame["name"] == name].set_index("step")["value"]

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Columns of the `evals` table, in step order; `correct` is one bit a sample, packed."""
        frame = _read(self.path / "evals", "evals").sort_values("step", kind="stable")
        return frame if metric is None else frame[frame["metric"] == metric].reset_index(drop=True)

    def correct(self, metric: str) -> NDArray[np.bool_] | None:
        """[evals, n] correctness of each sample at each evaluation.

        None if n changed midway, or where bits are missing, as in a run converted from a log.
        """
        frame = self.evals(metric)
        if frame.empty or frame["n"].nunique() > 1 or frame["correct"].isna().any():
            return None
        rows = zip(frame["correct"], frame["n"], strict=True)
        return np.stack([unpack_bits(bits, int(n)) for bits, n in rows])

    def events(self) -> pd.DataFrame:
        """The event log: columns time, kind, step and whatever else the events carry."""
        return pd.DataFrame(self.dir.read_events(), columns=None)


@dataclass(frozen=True)
class Runs:
    """Every run below a folder; the frames are those of `Run` with a column `run` in front."""

    path: Path
    items: tuple[Run, ...]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def table(self) -> pd.DataFrame:
        """One row a run: name, state, step, every setting that differs between runs, last kNN."""
        rows = []
        factors = self.factors()
        for run in self:
            status = run.dir.read_status()
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
        return self._concat(lambda run: run.signals())

    def scalars(self) -> pd.DataFrame:
        return self._concat(lambda run: run.scalars())

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        return self._concat(lambda run: run.evals(metric))

    def events(self) -> pd.DataFrame:
        return self._concat(lambda run: run.events())

    def _concat(self, read: Any) -> pd.DataFrame:
        frames = [frame.assign(run=run.name) for run in self if len(frame := read(run))]
        if not frames:
            return pd.DataFrame(columns=["run"])
        whole = pd.concat(frames, ignore_index=True)
        return whole[["run", *(c for c in whole.columns if c != "run")]]


def load(folder: str | Path) -> Runs:
    """Every run at or below `folder`. Raises FileNotFoundError when there is no such folder."""
    path = Path(folder)
    return Runs(path, tuple(Run(run) for run in find_runs(path)))


def open_run(folder: str | Path) -> Run:
    """One run folder. Raises FileNotFoundError when it is not one."""
    path = Path(folder)
    if find_runs(path) != [path]:
        raise FileNotFoundError(f"{path}: not a run folder (no config.yaml, no tables in it)")
    return Run(path)


def _read(folder: Path, name: str) -> pd.DataFrame:
    return read_table(folder, name).to_pandas()


def read_table(folder: Path, name: str) -> pa.Table:
    """All readable parts; a damaged, foreign or too new part is named in a warning and left out.

    As stored: pandas tells null, not measured, from NaN no longer.
    """
    tables = [t for part in sorted(folder.glob("part-*.parquet")) if (t := _part(part)) is not None]
    if not tables:
        return TABLES[name].empty_table()
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries()


def _part(path: Path) -> pa.Table | None:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        warnings.warn(f"{path}: left out, not readable ({error})", stacklevel=2)
        return None
    version = version_of(table.schema)
    if not 0 < version <= VERSION:
        found = f"schema version {version}" if version else "not a stabkit table"
        warnings.warn(
            f"{path}: left out, {found}; this stabkit reads up to {VERSION}", stacklevel=2
        )
        return None
    return table


def _flatten(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
