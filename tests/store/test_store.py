import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stabkit
from stabkit.store.schema import SIGNALS, TABLES, VERSION
from stabkit.store.writer import Writer, pack_bits, steps_in, trim, unpack_bits

LAYERS = ["patch_embed", "blocks.0"]


def fill(writer: Writer, first: int, count: int) -> None:
    """Values that follow from step and layer, so that any row can be checked alone."""
    steps = np.arange(first, first + count)
    values = (steps[:, None] + np.array([0.25, 0.5])).astype(np.float32)
    absent = np.zeros((count, 2), dtype=bool)
    frozen = absent | np.array([True, False])
    missing = {"grad_norm": frozen, "grad_max": frozen, "param_norm": absent}
    writer.add_layers(steps, LAYERS, dict.fromkeys(SIGNALS, values), missing)
    writer.add_scalars(steps, "loss", steps / 7)
    for step in steps[steps % 2 == 0]:
        writer.add_eval(int(step), "knn_heldout", 0.5, 0.1, 5, 0.07, np.arange(9) % 2 == 0)
    writer.flush()


def test_tables_read_back_as_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    fill(writer, 0, 5)
    fill(writer, 5, 3)
    run = stabkit.open_run(tmp_path)
    signals = run.signals()
    assert signals["step"].tolist() == np.repeat(np.arange(8), 2).tolist()
    assert signals["layer"].tolist() == LAYERS * 8
    assert signals["depth"].tolist() == [0, 1] * 8
    np.testing.assert_array_equal(signals["param_norm"], signals["step"] + [0.25, 0.5] * 8)
    assert signals["grad_norm"].isna().tolist() == [True, False] * 8
    np.testing.assert_array_equal(run.scalar("loss"), np.arange(8) / 7)
    evals = run.evals("knn_heldout")
    assert evals["step"].tolist() == [0, 2, 4, 6]
    assert evals["n"].tolist() == [9] * 4
    correct = run.correct("knn_heldout")
    assert correct is not None
    np.testing.assert_array_equal(correct, np.tile(np.arange(9) % 2 == 0, (4, 1)))


def test_files_have_the_documented_schema_and_identity(tmp_path: Path) -> None:
    fill(Writer(tmp_path, "abcd"), 0, 2)
    for name, schema in TABLES.items():
        (part,) = (tmp_path / name).iterdir()
        written = pq.read_schema(part)
        assert written.equals(schema, check_metadata=False)
        assert written.metadata[b"stabkit_run"] == b"abcd"
        assert written.metadata[b"stabkit_version"] == str(VERSION).encode()


def test_further_signals_are_columns_of_the_parts_that_have_them(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    present = np.zeros((2, 2), dtype=bool)
    for first, names in ((0, ["grad_norm"]), (2, ["grad_norm", "adam_rms"]), (4, ["own"])):
        values = np.arange(4, dtype=np.float32).reshape(2, 2) + first
        steps = np.arange(first, first + 2)
        given, missing = dict.fromkeys(names, values), dict.fromkeys(names, present)
        writer.add_layers(steps, LAYERS, given, missing)
        if first:  # the first two are of one part
            writer.flush()
    run = stabkit.open_run(tmp_path)
    signals = run.signals()
    assert list(signals) == ["step", "layer", "depth", *SIGNALS, "adam_rms", "own"]
    assert signals["grad_norm"].notna().tolist() == [True] * 8 + [False] * 4
    assert signals["adam_rms"].dropna().tolist() == [2, 3, 4, 5]
    assert signals["own"].dropna().tolist() == [4, 5, 6, 7]
    alone = run.signals(["own", "grad_norm"])
    assert list(alone) == ["step", "layer", "depth", "own", "grad_norm"]
    assert alone["own"].equals(signals["own"])
    with pytest.raises(KeyError, match=r"no signal 'adam_rm' .* those that were: grad_norm"):
        run.signals(["adam_rm"])
    trim(tmp_path, 3)
    kept = stabkit.open_run(tmp_path).signals()
    assert kept["adam_rms"].dropna().tolist() == [2, 3]
    assert "own" not in kept


def test_non_finite_values_are_kept_and_not_taken_for_missing(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    values = np.array([[np.nan, np.inf]], dtype=np.float32)
    nothing = dict.fromkeys(SIGNALS, np.zeros((1, 2), dtype=bool))
    writer.add_layers(np.array([0]), LAYERS, dict.fromkeys(SIGNALS, values), nothing)
    writer.flush()
    (part,) = (tmp_path / "layers").iterdir()
    column = pq.read_table(part)["grad_norm"]
    assert column.null_count == 0
    np.testing.assert_array_equal(column.to_numpy(), values[0])


@pytest.mark.parametrize("step", [0, 3, 4, 5, 8, 99])
def test_trim_then_write_again_gives_the_same_tables(tmp_path: Path, step: int) -> None:
    writer = Writer(tmp_path / "broken", "abcd")
    for first in (0, 4):
        fill(writer, first, 4)
    trim(tmp_path / "broken", step)
    fill(Writer(tmp_path / "broken", "abcd"), min(step, 8), max(0, 8 - step)) if step < 8 else None
    whole = Writer(tmp_path / "whole", "abcd")
    fill(whole, 0, 8)
    broken, unbroken = (stabkit.open_run(tmp_path / name) for name in ("broken", "whole"))
    for table in ("signals", "scalars", "evals"):
        left = getattr(broken, table)().reset_index(drop=True)
        right = getattr(unbroken, table)().reset_index(drop=True)
        assert left.equals(right), table


def test_a_damaged_part_is_named_before_anything_is_removed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    for first in (0, 4):
        fill(writer, first, 4)
    (damaged, _) = sorted((tmp_path / "scalars").iterdir())
    damaged.write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"part-000000\.parquet: not readable .* move it away"):
        steps_in(tmp_path)
    damaged.unlink()
    assert steps_in(tmp_path) == (0, 7)


def test_flushes_that_share_a_step_keep_all_their_rows(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    for metric in ("knn_heldout", "knn_bank"):
        writer.add_eval(10, metric, 0.5, 0.1, 5, 0.07, np.ones(3, dtype=bool))
        writer.flush()
    assert stabkit.open_run(tmp_path).evals()["metric"].tolist() == ["knn_heldout", "knn_bank"]


def test_a_disk_that_takes_no_more_loses_no_rows(tmp_path: Path) -> None:
    """The limit on file size stands in for a full disk: the write itself fails, half done."""
    writer = Writer(tmp_path, "abcd")
    fill(writer, 0, 2)
    writer.add_scalars(np.arange(2, 400), "loss", np.arange(2, 400) / 7)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(stabkit.open_run(tmp_path).scalars()) == 2
    writer.flush()
    np.testing.assert_array_equal(stabkit.open_run(tmp_path).scalar("loss"), np.arange(400) / 7)


def test_foreign_damaged_and_newer_parts_are_named_and_left_out(tmp_path: Path) -> None:
    fill(Writer(tmp_path, "abcd"), 0, 2)
    folder = tmp_path / "scalars"
    (folder / "part-000010.parquet").write_bytes(b"PAR1 torn")
    pq.write_table(pa.table({"x": [1]}), folder / "part-000011.parquet")
    newer = TABLES["scalars"].with_metadata({"stabkit_version": str(VERSION + 1)})
    pq.write_table(newer.empty_table(), folder / "part-000012.parquet")
    with pytest.warns(UserWarning, match="left out") as caught:
        scalars = stabkit.open_run(tmp_path).scalars()
    messages = "\n".join(str(w.message) for w in caught)
    assert len(caught) == 3
    for reason in (
        "000010.parquet: left out, not readable",
        "not a stabkit table",
        "schema version 2",
    ):
        assert reason in messages
    assert len(scalars) == 2


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_bits_survive_packing(n: int) -> None:
    bits = np.random.default_rng(n).random(n) < 0.5
    packed = pack_bits(bits)
    assert len(packed) == -(-n // 8)
    np.testing.assert_array_equal(unpack_bits(packed, n), bits)


def test_open_run_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        stabkit.open_run(tmp_path)
