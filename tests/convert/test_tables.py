import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from stabkit.convert.tables import read_table
from tests.convert.conftest import converted
from tests.convert.events import write_events


def write_csv(path: Path) -> None:
    path.write_text(
        "epoch,global_step,loss,note,lr,empty\n"
        "0,4,nan,start,1e-3,\n"
        "0,2,0.30000000000000004,,,\n"
        "1,6,-Infinity,more,2e-3,\n"
        "1,,9,no step,9,\n"
    )


def write_parquet(path: Path) -> None:
    loss = pa.array([math.nan, 0.30000000000000004, -math.inf, 9])
    inner = pa.StructArray.from_arrays(
        [pa.array([1e-3, None, 2e-3, 9]), pa.array(["start", None, "more", "no step"])],
        ["lr", "note"],
    )
    table = {"epoch": [0, 0, 1, 1], "global_step": [4, 2, 6, None], "loss": loss, "opt": inner}
    pq.write_table(pa.table(table | {"empty": pa.nulls(4), "list": [[1], [2], [3], [4]]}), path)


RECORDS = [
    {"epoch": 0, "global_step": 4, "loss": "NaN", "opt": {"lr": 1e-3, "note": "start"}},
    {"epoch": 0, "global_step": 2, "loss": 0.30000000000000004, "opt": {"lr": None}},
    {"epoch": 1, "global_step": 6, "loss": -math.inf, "opt": {"lr": 2e-3}, "list": [1]},
    {"epoch": 1, "loss": 9, "opt": {"lr": 9}},
]


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"epoch": 1, "lo')


def write_array(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, indent=2))


def write_columns(path: Path) -> None:
    pd.DataFrame([{**r, "opt": None, "lr": r["opt"].get("lr")} for r in RECORDS]).to_json(path)


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_lines, write_array])
def test_blanks_are_no_values_and_not_finite_ones_are(
    tmp_path: Path, out: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "log")
    run = converted(tmp_path / "log", out)
    assert run.scalar("loss").index.tolist() == [2, 4, 6]
    np.testing.assert_array_equal(run.scalar("loss"), [0.30000000000000004, math.nan, -math.inf])
    names = run.scalars()["name"].unique().tolist()
    assert set(names) == {"epoch", "loss", "lr" if "lr" in names else "opt.lr"}
    assert run.scalar("lr" if "lr" in names else "opt.lr").to_dict() == {4: 1e-3, 6: 2e-3}
    meta = run.dir.read_meta()["converted"]
    assert "1 row left out that have no global_step" in meta["notes"]
    # a list, text, and what is blank throughout
    assert {name.removeprefix("opt.") for name in meta["left_out"]} <= {"note", "empty", "list"}


def test_columns_as_pandas_writes_them(tmp_path: Path, out: Path) -> None:
    write_columns(tmp_path / "log.json")  # null for all that is not finite
    run = converted(tmp_path / "log.json", out)
    assert run.scalar("lr").to_dict() == {4: 1e-3, 6: 2e-3}


def test_mixed_cells_keep_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,x,flag\n0,1.5,True\n1,oops,false\n2, 2 ,\n")
    table = read_table(tmp_path / "log.csv")
    assert table.columns["x"].values.tolist() == [1.5, 2.0]
    assert table.columns["x"].rows.tolist() == [0, 2]
    assert table.columns["flag"].values.tolist() == [1.0, 0.0]
    assert table.notes == ["x: 1 cell not numbers, as 'oops'"]


def test_integers_first_and_fractions_a_million_rows_later(tmp_path: Path) -> None:
    """A type guessed from the first block would refuse the last one."""
    (tmp_path / "log.csv").write_text("step,x\n" + "1,1\n" * 300_000 + "2,0.5\n3,nan\n")
    assert read_table(tmp_path / "log.csv").columns["x"].values[-2] == 0.5


def test_a_metric_that_comes_in_mid_run_does_not_hide_the_others(tmp_path: Path) -> None:
    rows = [*(f"{i},{2 - i / 100}" for i in range(30)), *(f"{i},nan,7" for i in range(30, 60))]
    (tmp_path / "log.csv").write_text("step,loss\n" + "\n".join(rows))
    table = read_table(tmp_path / "log.csv")
    assert np.isnan(table.columns["loss"].values[30:]).all()
    assert len(table.columns["loss"].values) == 60
    assert table.notes[0].startswith("30 rows with more cells than there are names")
    assert table.notes[0].endswith("(the first: row 32)")


def test_rows_with_an_extra_cell_here_and_there_are_left_out(tmp_path: Path) -> None:
    """A decimal comma between commas: the first cells would be read as other numbers."""
    rows = [f"{i},{2 - i / 100}".replace(".", ",") for i in range(60)]
    (tmp_path / "log.csv").write_text("step,loss\n" + "\n".join(rows))
    assert "loss" not in read_table(tmp_path / "log.csv").columns
    rows[30] = "30,2"
    (tmp_path / "log.csv").write_text("step,loss\n" + "\n".join(rows))
    (note,) = read_table(tmp_path / "log.csv").notes
    assert "rows left out that have too few or too many" in note


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"lat\xe9.csv")
    path.write_text("step,loss\n0,1\n1,2\n")
    assert read_table(path).columns["loss"].values.tolist() == [1, 2]


@pytest.mark.parametrize(("delimiter", "bom"), [(";", ""), ("\t", ""), (",", "\ufeff")])
def test_other_delimiters_and_a_byte_order_mark(tmp_path: Path, delimiter: str, bom: str) -> None:
    text = "step,loss\n1,0.5\n".replace(",", delimiter)
    (tmp_path / "log.csv").write_text(bom + text, encoding="utf-8")
    assert set(read_table(tmp_path / "log.csv").columns) == {"step", "loss"}


def test_a_torn_last_row_and_a_second_column_of_a_name_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss,loss\n0,1,2\n1,2,3,4\n2,3,4\n3,0.")
    table = read_table(tmp_path / "log.csv")
    assert table.columns["loss"].values.tolist() == [1.0, 3.0]
    assert table.notes == [
        "loss: a second column of this name was left out",
        "2 rows left out that have too few or too many cells (the first: row 3 has 4, and there "
        "are 3 names)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\x80\x04\x95pickle\0\0", "neither text"),
        (b"PAR1 torn", "not readable"),
        (b"\xff\xfes\x01t", "damaged UTF-16"),
        (b"{not json", "line 1 is not JSON"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b'{"a": ' * 100_000, "nested too deeply|not JSON"),
        (b"<html><body>404</body></html>", "not readable .*Empty CSV"),
        (b"time,loss\n1,2\n", "no column of steps.*--map COLUMN=step.*Its columns: time, loss"),
        (b"step,loss\n0.5,2\n", "step = 0.5 in row 1: steps are whole"),
        (b"step,loss\n1,2\ninf,2\n", "step = inf in row 2"),
        (b"step,loss\n1e300,2\n", "step = 1e\\+300"),
        (b"step,note\n1,hello\n", "no series of numbers; left out: note .not numbers, as 'hello'"),
        (b"step\n1\n", "no series of numbers"),
        (b"step,loss\n", "holds no numbers that have names"),
        (b'{"step": 1, "loss": 1' + b"0" * 5000 + b"}", "not JSON|no series of numbers"),
        (b'step,"a\nb\x1b[31m"\n1,x\n', r"left out: a\\nb\\x1b\[31m"),
    ],
)
def test_what_is_no_log_is_refused_in_words(
    tmp_path: Path, out: Path, content: bytes, message: str
) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ConvertError, match=f"(?s)log: .*(?:{message})"):
        convert(tmp_path / "log", out)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_bytes_at_random_never_raise_anything_else(tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    good = b"step,loss,acc\n" + b"".join(b"%d,%d.5,0.1\n" % (i, i) for i in range(20))
    parquet = tmp_path / "good.parquet"
    pq.write_table(pa.table({"step": [1, 2], "loss": [0.5, 0.25]}), parquet)
    path = tmp_path / "log"
    for start in (good, parquet.read_bytes(), json.dumps(RECORDS).encode(), b""):
        for trial in range(40):
            content = bytearray(start or rng.bytes(200))
            for at in rng.integers(0, len(content), 1 + trial % 4):
                content[at] = rng.integers(256)
            path.write_bytes(bytes(content[: rng.integers(1, len(content) + 1)]))
            with suppress(ConvertError):
                convert(path, out, dry_run=True)
            assert not out.exists(), "a dry run writes nothing, whatever it reads"


@pytest.mark.parametrize("ends", [("[", ", ", "]"), ("", "\n", "\n")])
def test_records_that_are_no_objects_are_counted(tmp_path: Path, ends: tuple[str, ...]) -> None:
    rows = [f'{{"step": {i}, "loss": {2 - i / 10}}}' for i in range(10)]
    rows[3:3] = ["7", "[1, 2]"]
    (tmp_path / "log.json").write_text(ends[0] + ends[1].join(rows) + ends[2])
    table = read_table(tmp_path / "log.json")
    said = "2 records left out that are no JSON objects (the first: record 4)"
    assert table.notes == [said]
    assert len(table.columns["loss"].values) == 10


def test_a_program_is_no_log(tmp_path: Path, out: Path) -> None:
    (tmp_path / "train.py").write_text("for step in range(3):\n    print(f'step=1 loss=2')\n")
    with pytest.raises(ConvertError, match=r"train\.py: is a Python program, no log"):
        converted(tmp_path / "train.py", out)


@pytest.mark.parametrize(
    ("format", "says"),
    [("wandb", "is a file of tensorboard"), ("table", "leave out --format table"), (None, "")],
)
def test_a_format_that_contradicts_the_file_is_refused(
    tmp_path: Path, out: Path, format: str | None, says: str
) -> None:
    source = write_events(tmp_path, [(i, "loss", 2 - i / 10) for i in range(9)])
    if format is None:
        assert converted(source, out, format="tensorboard").scalar("loss").size == 9
        return
    with pytest.raises(ConvertError, match=says):
        converted(source, out, format=format)


def test_a_table_is_no_file_of_neptune(tmp_path: Path, out: Path) -> None:
    write_csv(tmp_path / "log")
    with pytest.raises(ConvertError, match="is no file of neptune"):
        converted(tmp_path / "log", out, format="neptune")


@pytest.mark.parametrize(
    "settings",
    ['{"lr": 0.1, "epochs": 90}', '{\n  "lr": 0.1,\n  "betas": [1, 2]\n}', "{}\n[1]\n[INFO] begin"],
)
def test_a_text_log_below_settings_in_json(settings: str, tmp_path: Path, out: Path) -> None:
    lines = [settings, *(f"step {i} loss {9 - i}" for i in range(10)), '{"step": 10, "loss": -1}']
    (tmp_path / "train.log").write_text("\n".join(lines))
    losses = converted(tmp_path / "train.log", out).scalar("loss").to_dict()
    assert losses == {i: 9 - i for i in range(11)}


def test_json_over_several_lines_is_no_text_log(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('{\n"step": 1,\n"loss": 2\n}\n' * 9)
    with pytest.raises(ConvertError, match="line 1 is not JSON"):
        read_table(path)
