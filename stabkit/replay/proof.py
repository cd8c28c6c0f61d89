"""Compare a replay with the record: rows, evaluations and whole states, bit for bit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stabkit.monitor.torch_files import read_tensors
from stabkit.printing import first_of
from stabkit.store.reader import StoredRun
from stabkit.store.schema import METRIC

CLOCKS = ("images_per_s", "knn_seconds")  # scalars that depend on the time of day alone


class ReplayDiffersError(Exception):
    """The replay is not the run: the message says from which step, and in what."""


class Proof:
    """Compares interval by interval; `rows`, `evaluations` and `states` say what was compared."""

    def __init__(self, record: StoredRun, replay: Path) -> None:
        self._record, self._replay = record, replay
        self.rows = self.evaluations = 0
        self.states: list[int] = []

    def compare(self, first: int, end: int) -> None:
        """Compare what was recorded of the steps `first` to `end` - 1.

        Raises ReplayDiffersError for the first step that differs.
        """
        record, replay = self._record, StoredRun(self._replay)
        layers = [_steps(run.signals(), first, end) for run in (record, replay)]
        scalars = [_steps(run.scalars(), first, end) for run in (record, replay)]
        evals = [_steps(run.evals(), first, end) for run in (record, replay)]
        found = [
            *_layers_differ(*layers),
            *_scalars_differ(*scalars),
            *_evals_differ(*evals),
        ]
        if found:
            step = min(at for at, _ in found)
            words = [what for at, what in found if at == step]
            raise ReplayDiffersError(
                f"differs from the record from step {step} on: {first_of(words, 4, '; ')}"
            )
        self.rows += layers[0]["step"].nunique()
        self.evaluations += len(evals[0][evals[0]["metric"].isin(evals[1]["metric"])])

    def compare_last(self, step: int) -> None:
        """Compare the held-out evaluation of the weights after the last update of the replay.

        `knn_bank` is not compared: it is recorded with the next update, which is not replayed.
        """
        record, replay = (run.evals(METRIC) for run in (self._record, StoredRun(self._replay)))
        record, replay = record[record["step"] == step], replay[replay["step"] == step]
        if found := list(_evals_differ(record, replay)):
            raise ReplayDiffersError(f"differs from the record at step {step}: {found[0][1]}")
        self.evaluations += len(record)

    def compare_state(self, step: int, file: Path, own: Mapping[str, Any]) -> None:
        """Compare the whole state before the update `step` with the file that holds the record's.

        Raises ReplayDiffersError that names the first tensor that differs, ValueError for a file
        that is damaged.
        """
        recorded = read_tensors(file)
        name = next(
            (
                differing
                for part in ("model", "optimizer", "bank", "stabilizer", "scaler")
                if part in recorded and part in own
                for differing in _trees_differ(recorded[part], own[part], part)
            ),
            None,
        )
        if name is not None:
            raise ReplayDiffersError(f"differs from {file} (before step {step}): first in {name}")
        self.states.append(step)


def _steps(frame: pd.DataFrame, first: int, end: int) -> pd.DataFrame:
    return frame[(frame["step"] >= first) & (frame["step"] < end)]


def _layers_differ(record: pd.DataFrame, replay: pd.DataFrame) -> Iterator[tuple[int, str]]:
    keys = ["step", "layer"]
    names = [c for c in record if c not in (*keys, "depth")]
    both = record.astype({"layer": str}).merge(
        replay.astype({"layer": str}), on=keys, how="left", suffixes=("", " here"), sort=False
    )
    for name in names:
        there = both[name]
        here = both[f"{name} here"] if f"{name} here" in both else pd.Series(np.nan, both.index)
        # a step at which no layer has a value: the run did not measure it then
        measured = there.notna().groupby(both["step"]).transform("any")
        differs = measured & ~((there == here) | (there.isna() & here.isna()))
        for at in both.index[differs]:
            row = both.loc[at]
            yield int(row["step"]), _words(f"{name} of {row['layer']}", there[at], here[at])


def _scalars_differ(record: pd.DataFrame, replay: pd.DataFrame) -> Iterator[tuple[int, str]]:
    def named(frame: pd.DataFrame) -> "pd.Series[float]":
        frame = frame[~frame["name"].isin(CLOCKS)].astype({"name": str})
        return frame.set_index(["step", "name"])["value"]

    there = named(record)
    here = named(replay).reindex(there.index)
    differs = ~((there == here) | (there.isna() & here.isna()))
    for step, name in there.index[differs]:
        yield int(step), _words(name, there[step, name], here[step, name])


def _evals_differ(record: pd.DataFrame, replay: pd.DataFrame) -> Iterator[tuple[int, str]]:
    columns = ["value", "correct"]
    here = replay.astype({"metric": str}).set_index(["step", "metric"])[columns]
    known = set(here.index.get_level_values("metric"))
    for row in record.astype({"metric": str}).itertuples():
        if row.metric not in known:  # `stabkit evaluate` measured it
            continue
        key = (row.step, row.metric)
        value, correct = here.loc[key] if key in here.index else (np.nan, None)
        if value != row.value or correct != row.correct:
            yield int(row.step), _words(row.metric, row.value, value)


def _words(what: str, there: float, here: float) -> str:
    return f"{what} was {there!s}, is {here!s}"


def _trees_differ(recorded: Any, own: Any, name: str) -> Iterator[str]:
    if isinstance(recorded, Tensor) and isinstance(own, Tensor):
        if not _same_bits(recorded, own.detach().cpu()):
            yield name
    elif isinstance(recorded, dict) and isinstance(own, dict):
        for key in dict.fromkeys([*recorded, *own]):
            yield from _trees_differ(recorded.get(key), own.get(key), f"{name}.{key}")
    elif isinstance(recorded, list | tuple) and isinstance(own, list | tuple):
        if len(recorded) != len(own):
            yield name
        for i, (one, other) in enumerate(zip(recorded, own, strict=False)):
            yield from _trees_differ(one, other, f"{name}.{i}")
    elif recorded != own:
        yield name


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
    return bool(raw[0].equal(raw[1]))
