"""Real damage to the files of a run: named, left out, and the rest is read as if it were not."""

import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stabkit
from stabkit.rundir import LeftOutWarning
from stabkit.store.schema import VERSION, with_identity
from stabkit.store.tables import read_table
from stabkit.store.writer import Writer
from tests.store.test_store import fill

PART = "part-000001.parquet"
NAMES = {"layers": "signals", "scalars": "scalars", "evals": "evals"}


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts per table; steps 0..3, 4..7, 8..11."""
    folder = tmp_path_factory.mktemp("undamaged") / "run"
    writer = Writer(folder, "abcd")
    for first in (0, 4, 8):
        fill(writer, first, 4)
    return folder


@pytest.fixture
def run(undamaged: Path, tmp_path: Path) -> Path:
    """Return a copy of the run for each test to damage."""
    return Path(shutil.copytree(undamaged, tmp_path / "run"))


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write the part as if this stabkit had written the changed table."""
    table = change(pq.read_table(part, partitioning=None))
    pq.write_table(table.replace_schema_metadata(with_identity(table.schema, "x").metadata), part)


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-20])


def foreign(part: Path) -> None:
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.replace_schema_metadata({}), part)


def newer(part: Path) -> None:
    table = pq.read_table(part, partitioning=None)
    later = table.schema.metadata | {b"stabkit_version": str(VERSION + 1).encode()}
    pq.write_table(table.replace_schema_metadata(later), part)


def unfinished(part: Path) -> None:
    temporary = part.with_name(f".{part.name}.tmp")
    part.rename(temporary)
    os.utime(temporary, (time.time() - 3600,) * 2)


def step_as(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: replaced(table, "step", table["step"].cast(kind))


def without_a_step(table: pa.Table) -> pa.Table:
    holed = pa.array([None, *table["step"].to_pylist()[1:]], pa.int64())
    return replaced(table, "step", holed)


def name_of_bytes(table: pa.Table) -> pa.Table:
    """Make a name that is no text: Parquet files hold it, pandas cannot."""
    column = next(c for c in ("layer", "name", "metric") if c in table.column_names)
    names = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    codes = pa.array(np.zeros(len(table), dtype=np.int32))
    return replaced(table, column, pa.DictionaryArray.from_arrays(codes, names))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "not readable"),
    "empty": (lambda part: part.write_bytes(b""), "not readable"),
    "random": (lambda part: part.write_bytes(random.Random(0).randbytes(9000)), "not readable"),
    "foreign": (foreign, "not a stabkit table"),
    "newer": (newer, f"schema version {VERSION + 1}; this stabkit reads up to {VERSION}"),
    "half written": (unfinished, "half written"),
    "no step": (lambda part: rewrite(part, lambda t: t.drop_columns("step")), "no column step"),
    "two steps": (
        lambda part: rewrite(part, lambda t: t.append_column("step", t["step"])),
        "no column step",
    ),
    "text steps": (
        lambda part: rewrite(part, step_as(pa.string())),
        "column step is string, not int64",
    ),
    "float steps": (
        lambda part: rewrite(part, step_as(pa.float64())),
        "column step is double, not int64",
    ),
    "null step": (lambda part: rewrite(part, without_a_step), "step has no value in 1 of"),
    "no text": (lambda part: rewrite(part, name_of_bytes), "Invalid UTF8"),
    "folder": (lambda part: (part.unlink(), part.mkdir()), "not readable (not a file)"),
    "pipe": (lambda part: (part.unlink(), os.mkfifo(part)), "not readable (not a file)"),
    "dangling": (lambda part: (part.unlink(), part.symlink_to("no")), "not readable (not a file)"),
    "link loop": (lambda part: (part.unlink(), part.symlink_to(part)), "not readable"),
    "other name": (lambda part: part.rename(part.with_name("mine.parquet")), "not a part"),
}


@pytest.mark.parametrize("table", NAMES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_named_and_the_others_are_read(
    run: Path, table: str, damage: str
) -> None:
    act, reason = DAMAGE[damage]
    whole = getattr(stabkit.open_run(run), NAMES[table])()
    act(run / table / PART)
    with pytest.warns(LeftOutWarning, match="left out") as caught:
        left = getattr(stabkit.open_run(run), NAMES[table])()
    (message,) = {str(w.message) for w in caught}
    assert message.startswith(str(run / table))
    assert reason in message
    assert "\n" not in message
    expected = whole[~whole["step"].between(4, 7)]
    pd.testing.assert_frame_equal(
        left.reset_index(drop=True), expected.reset_index(drop=True), check_categorical=False
    )


@pytest.mark.parametrize("table", NAMES)
def test_rows_that_are_there_twice_count_once(run: Path, table: str) -> None:
    whole = getattr(stabkit.open_run(run), NAMES[table])()
    shutil.copy(run / table / PART, run / table / "part-000001 (copy).parquet")
    with pytest.warns(LeftOutWarning, match=r"rows left out, of step, .* the first is at step 4"):
        again = getattr(stabkit.open_run(run), NAMES[table])()
    pd.testing.assert_frame_equal(again.reset_index(drop=True), whole.reset_index(drop=True))


def test_steps_that_parts_hold_out_of_order_are_put_in_order(run: Path) -> None:
    whole = stabkit.open_run(run).scalars()
    (run / "scalars" / PART).rename(run / "scalars" / "part-000009.parquet")
    again = stabkit.open_run(run).scalars()
    assert again["step"].tolist() == whole["step"].tolist()


def test_a_file_in_place_of_a_table_is_named(run: Path) -> None:
    shutil.rmtree(run / "layers")
    (run / "layers").write_text("no folder")
    with pytest.warns(LeftOutWarning, match=r"layers: left out, not readable \(Not a directory\)"):
        assert stabkit.open_run(run).signals().empty


def test_a_part_that_is_being_written_is_no_damage(run: Path) -> None:
    (run / "layers" / ".part-000003.parquet.tmp").write_bytes(b"PAR1")
    assert len(stabkit.open_run(run).signals()) == 24


def test_a_signal_that_a_part_lacks_is_null_there(run: Path) -> None:
    rewrite(run / "layers" / PART, lambda table: table.drop_columns("grad_max"))
    signals = stabkit.open_run(run).signals()
    lacking = signals["step"].between(4, 7)
    assert signals["grad_max"][lacking].isna().all()
    assert (signals["grad_max"].notna() == (~lacking & (signals["layer"] != "patch_embed"))).all()
    assert signals["param_norm"].notna().all()


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_to_bytes_ends_in_anything_but_a_warning(run: Path, seed: int) -> None:
    rng = random.Random(seed)
    table = rng.choice(list(NAMES))
    part = run / table / PART
    content = bytearray(part.read_bytes())
    tail = int.from_bytes(content[-8:-4], "little") + 8  # where most bytes mean something
    for _ in range(rng.choice([1, 2, 20])):
        content[-rng.randrange(1, tail if rng.random() < 0.5 else len(content))] ^= (
            1 << rng.randrange(8)
        )
    part.write_bytes(content if rng.random() < 0.8 else content[: rng.randrange(len(content))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_table(run / table, table)
    for warning in caught:
        assert warning.category is LeftOutWarning
        assert str(warning.message).startswith(str(run / table))


def test_only_the_columns_asked_for_are_read(run: Path) -> None:
    rewrite(run / "layers" / PART, lambda t: replaced(t, "param_norm", t["step"]))
    signals = stabkit.open_run(run).signals(["grad_norm"])  # else the part would be left out
    assert list(signals) == ["step", "layer", "depth", "grad_norm"]
    assert len(signals) == 24
    with pytest.raises(KeyError, match="no_such"):
        stabkit.open_run(run).signals(["no_such"])


def test_a_kept_run_reads_once_and_hands_out_copies(run: Path) -> None:
    kept = stabkit.open_run(run).keeping()
    before = kept.signals().copy()
    shutil.rmtree(run / "layers")
    changed = kept.signals()
    changed["grad_norm"] = 0.0
    del changed["step"]
    pd.testing.assert_frame_equal(kept.signals(), before)
    assert stabkit.open_run(run).signals().empty


def add(run: Path, k: int, correct: np.ndarray, step: int = 20, metric: str = "knn_full") -> None:
    writer = Writer(run, "abcd")
    writer.add_eval(step, metric, float(correct.mean()), 0.1, k, 0.07, correct)
    writer.flush()


def test_correct_is_of_one_k(run: Path) -> None:
    five, twenty = np.arange(9) % 3 == 0, np.arange(9) % 2 == 0
    add(run, 5, five)
    add(run, 20, twenty)
    opened = stabkit.open_run(run)
    with pytest.raises(ValueError, match="knn_full has k = 5, 20: name one"):
        opened.correct("knn_full")
    for k, bits in ((5, five), (20, twenty)):
        found = opened.correct("knn_full", k)
        assert found is not None
        np.testing.assert_array_equal(found, bits[None])
    assert opened.correct("knn_full", 7) is None


@pytest.mark.parametrize("bits", [b"", b"\x00", b"\x00" * 3, None], ids=repr)
def test_bits_of_another_length_are_named_and_not_stretched(run: Path, bits: bytes | None) -> None:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array([bits, *table["correct"].to_pylist()[1:]], pa.binary())
        return replaced(table, "correct", column)

    rewrite(run / "evals" / PART, change)
    with pytest.warns(LeftOutWarning, match=r"bits of knn_heldout left out, at step 4"):
        assert stabkit.open_run(run).correct("knn_heldout") is None
