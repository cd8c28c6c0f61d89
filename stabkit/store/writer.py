"""Write rows as complete Parquet part files.

A Parquet file cannot be read until it is closed, so no file stays open: rows wait in memory, and
each flush writes one whole part under a temporary name, syncs it and renames it. A kill loses only
rows that a resumed run makes again.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stabkit.rundir import same_folder
from stabkit.store.parts import next_part, open_part, write_part
from stabkit.store.schema import EVALS, LAYERS, METRIC, SCALARS, SIGNALS, TABLES, with_identity
from stabkit.store.tables import problem_of


class Writer:
    """A buffer for the three tables of the run at `folder`; every part keeps the id `run`."""

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._is_ours = same_folder(folder)
        self.folder = folder
        self.run = run
        self._pending: dict[str, list[pa.Table]] = {name: [] for name in TABLES}

    def add_layers(
        self,
        steps: NDArray[np.int64],
        layers: list[str],
        signals: dict[str, NDArray[np.float32]],
        missing: dict[str, NDArray[np.bool_]],
    ) -> None:
        """Add signals of layers: `signals[name]` [steps, layers], layers in depth order.

        `missing[name]` is true where a value was not measured. Those of SIGNALS that are not given
        are null; every other name is a column of its own.
        """
        num_steps, num_layers = len(steps), len(layers)
        further = [name for name in signals if name not in SIGNALS]
        schema = LAYERS
        for name in further:
            schema = schema.append(pa.field(name, pa.float32()))
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.tile(np.arange(num_layers, dtype=np.int32), num_steps)), pa.array(layers)
        )
        columns = [
            pa.array(np.repeat(steps, num_layers)),
            names,
            pa.array(np.tile(np.arange(num_layers, dtype=np.int16), num_steps)),
            *(
                pa.array(signals[s].ravel(), mask=missing[s].ravel())
                if s in signals
                else pa.nulls(num_steps * num_layers, pa.float32())
                for s in (*SIGNALS, *further)
            ),
        ]
        self._add("layers", schema, columns)

    def add_scalars(self, steps: NDArray[np.int64], name: str, values: NDArray[np.float64]) -> None:
        """Add one named series: `steps` and `values`, [steps]."""
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(steps), dtype=np.int32)), pa.array([name])
        )
        self._add("scalars", SCALARS, [pa.array(steps), names, pa.array(values)])

    def add_eval(
        self,
        step: int,
        metric: str,
        value: float,
        chance: float,
        k: int,
        temperature: float,
        correct: NDArray[np.bool_],
    ) -> None:
        """Add an evaluation; `correct` [n] has one bit per sample, always in the same order."""
        row = [step, metric, value, chance, len(correct), k, temperature, pack_bits(correct)]
        columns = [pa.array([v], type=f.type) for v, f in zip(row, EVALS, strict=True)]
        self._add("evals", EVALS, columns)

    def add_accuracies(
        self,
        steps: NDArray[np.int64],
        metric: str,
        values: NDArray[np.float64],
        chance: float,
        n: int,
        k: int,
        temperature: float,
    ) -> None:
        """Add evaluations [steps] without their samples. Unknown n and k are 0, others NaN."""
        rows = len(steps)
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, dtype=np.int32)), pa.array([metric])
        )
        same = [
            pa.array([fact] * rows, EVALS.field(name).type)
            for name, fact in zip(
                ("chance", "n", "k", "temperature"), (chance, n, k, temperature), strict=True
            )
        ]
        columns = [pa.array(steps), names, pa.array(values), *same, pa.nulls(rows, pa.binary())]
        self._add("evals", EVALS, columns)

    def _add(self, table: str, schema: pa.Schema, columns: list[Any]) -> None:
        self._pending[table].append(pa.table(columns, schema=schema))

    def flush(self) -> None:
        """Make everything added so far durable. Raises OSError and keeps the rows if it cannot.

        A deleted folder is not created again, and another folder in its place is not written to.
        """
        self.check_folder()
        for name, waiting in self._pending.items():
            if waiting:
                whole = pa.concat_tables(waiting, promote_options="default").unify_dictionaries()
                schema = with_identity(whole.schema, self.run)
                part = next_part(self.folder / name)
                try:
                    write_part(part, whole, schema)
                except FileNotFoundError:
                    self.check_folder()  # it was there a moment ago
                    raise
                finally:
                    if os.path.exists(part):  # also if only the sync of its folder failed
                        self._pending[name] = []

    def check_folder(self) -> None:
        """Raise FileNotFoundError if the folder is not the one that was opened."""
        if not self._is_ours():
            raise FileNotFoundError(f"{self.folder}: the run's folder was deleted or moved")

    @property
    def rows_waiting(self) -> int:
        """How many rows the next flush would write."""
        return sum(len(table) for waiting in self._pending.values() for table in waiting)

    def drop_oldest(self, keep: int) -> int:
        """Drop the oldest rows of each table, down to `keep`; return how many were lost."""
        lost = 0
        for waiting in self._pending.values():
            rows = sum(len(table) for table in waiting)
            while rows > keep:
                rows -= len(waiting[0])
                lost += len(waiting.pop(0))
        return lost


def trim(folder: Path, step: int, keeps_eval: bool = False) -> None:
    """Remove every row at or after `step` from the tables of a run, so that it can resume there.

    `keeps_eval`: keep evaluations at `step` that somebody's loop logged. The Monitor's own kNN is
    made again if it is due.
    """
    for name in TABLES:
        # The last part first, so that a reader never finds one missing between two others.
        for part in sorted((folder / name).glob("part-*.parquet"), reverse=True):
            table = read_part(part)
            keep = pc.less(table["step"], step)
            if name == "evals" and keeps_eval:
                at_step = pc.equal(table["step"], step)
                keep = pc.or_(keep, pc.and_(at_step, pc.not_equal(table["metric"], METRIC)))
            kept = table.filter(keep)
            if not kept.num_rows:
                part.unlink()
            elif kept.num_rows < table.num_rows:
                write_part(part, kept, table.schema)


def copy_rows(table: Path, to: Path, step: int, run: str) -> None:
    """Write the rows of `table` before `step` into the new folder `to`, as rows of the run `run`.

    Raises ValueError that names a damaged part.
    """
    for part in sorted(table.glob("part-*.parquet")):
        rows = read_part(part)
        kept = rows.filter(pc.less(rows["step"], step))
        if kept.num_rows:
            write_part(next_part(to), kept, with_identity(kept.schema, run))


def read_part(part: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a part. Raises a ValueError that names it if it is damaged or foreign."""
    try:
        with open_part(part) as file:
            if problem := problem_of(file.schema_arrow, TABLES[part.parent.name]):
                raise ValueError(problem)
            return file.read(columns)
    except (OSError, pa.ArrowException, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{part}: not readable ({why}); move it away to go on without it"
        ) from None


def steps_in(folder: Path) -> tuple[int, int] | None:
    """Return the first and the last step in the tables of a run; None if they are empty.

    An evaluation at step 10 is of the weights after steps 0 to 9.
    """
    found = []
    for name in TABLES:
        for part in (folder / name).glob("part-*.parquet"):
            steps = pc.min_max(read_part(part, ["step"])["step"]).as_py()
            if steps["min"] is not None:
                before = 1 if name == "evals" else 0
                found += [max(step - before, 0) for step in (steps["min"], steps["max"])]
    return (min(found), max(found)) if found else None


def pack_bits(correct: NDArray[np.bool_]) -> bytes:
    return np.packbits(correct).tobytes()


def unpack_bits(packed: bytes, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n).astype(bool)
