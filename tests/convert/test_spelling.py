import gzip
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabkit.convert import unpack
from stabkit.convert.series import ConvertError
from stabkit.convert.spelling import numbers_of
from stabkit.convert.tables import read_table
from tests.convert.conftest import converted

LOSS = [2.5, 1.25, 1.125, 1.0625]


def table_of(path: Path, text: str, encoding: str = "utf-8") -> dict[str, list[float]]:
    path.write_bytes(text.encode(encoding))
    return {name: cells.values.tolist() for name, cells in read_table(path).columns.items()}


@pytest.mark.parametrize(
    ("cells", "decimal_comma", "numbers"),
    [
        (["0", "1,000", "12,345,678.5"], False, [0, 1000, 12345678.5]),
        (["1,000", "2,5"], False, [1, 2.5]),  # the second tells
        (["0,001", "0,125"], False, [0.001, 0.125]),
        (["1,000", "2,000"], True, [1, 2]),
        (["1,000,000", "2,000"], True, [1000000, 2000]),
        (["0.5%", "12%"], False, [0.005, 0.12]),
        (["0,5%", "12%"], False, [0.005, 0.12]),
        (["0.5%", "12%", "inf"], False, [0.005, 0.12, math.inf]),
        (["50%", "0.6"], False, [50, 0.6]),  # not of one kind: as they stand
        (["1,2,3", "x"], False, [None, None]),
        (["2,5", "1.234,56", "-12.345.678,9"], True, [2.5, 1234.56, -12345678.9]),
        (["1.234,56", "0.5"], False, [1234.56, 0.5]),
    ],
)
def test_a_column_decides_what_its_commas_are(
    cells: list[str], decimal_comma: bool, numbers: list[float | None]
) -> None:
    assert numbers_of(cells, decimal_comma)[0] == numbers


def test_nan_as_c_prints_it_is_no_blank() -> None:
    numbers, _ = numbers_of(["-1.#IND", "-nan(ind)", "-1.#INF", "-nan"])
    np.testing.assert_equal(numbers, [np.nan, np.nan, -np.inf, np.nan])


def test_numbers_in_tensors_are_numbers() -> None:
    numbers, _ = numbers_of(
        ["tensor(2.5, grad_fn=<NllLossBackward0>)", "np.float32(1.)", "tensor(nan)"]
    )
    np.testing.assert_equal(numbers, [2.5, 1, np.nan])


def test_percent_signs_are_told_of_what_may_be_judged(tmp_path: Path) -> None:
    names = ["mfu", "val_acc", "train/boxLoss", "grad_norm"]
    lines = [", ".join(f"{name} {9 - i}.5%" for name in names) for i in range(9)]
    (tmp_path / "log.txt").write_text("".join(f"step {i}: {x}\n" for i, x in enumerate(lines)))
    table = read_table(tmp_path / "log.txt")
    assert table.columns["mfu"].values[0] == 0.095
    told = [note.split(":")[0] for note in table.notes if "by its sign" in note]
    assert sorted(told) == sorted(names[1:])


def test_columns_between_semicolons_have_decimal_commas(tmp_path: Path) -> None:
    rows = "".join(f"{i};{str(v).replace('.', ',')};0,001\n" for i, v in enumerate(LOSS))
    found = table_of(tmp_path / "log.csv", "\ufeffstep;loss;lr\n" + rows.replace("\n", "\r\n"))
    assert found == {"step": [0, 1, 2, 3], "loss": LOSS, "lr": [0.001] * 4}


def test_a_text_log_with_decimal_commas_is_read_right(tmp_path: Path) -> None:
    rows = "".join(f"step {i}: loss = {str(v).replace('.', ',')}\n" for i, v in enumerate(LOSS))
    assert table_of(tmp_path / "log.txt", rows)["loss"] == LOSS


def test_an_accuracy_with_the_sign_of_percent_is_never_read_as_a_fraction(
    tmp_path: Path, out: Path
) -> None:
    rows = "".join(f"Epoch {i}/40 - loss: 2.30 - val_acc: 0.{i % 9 + 1}0%\n" for i in range(40))
    (tmp_path / "log.txt").write_text(rows)
    values = converted(tmp_path / "log.txt", out).evals("val_acc")["value"]
    assert values.max() == pytest.approx(0.009)


def test_thousands_in_a_text_log_are_steps(tmp_path: Path) -> None:
    text = "".join(f"step: {1000 * i:,} | loss: {v} | tokens: {i}.5M\n" for i, v in enumerate(LOSS))
    found = table_of(tmp_path / "log.txt", text)
    assert found["step"] == [0, 1000, 2000, 3000]
    assert found["tokens"] == [5e5, 1.5e6, 2.5e6, 3.5e6]


@pytest.mark.parametrize(
    "head", ["# seed 3\n# of 2024-05-01\nstep loss\n", "# seed 3\n# step loss\n", "# step loss\n"]
)
def test_names_follow_comments_or_are_the_last_of_them(tmp_path: Path, head: str) -> None:
    rows = "".join(f"{i} {v}\n" for i, v in enumerate(LOSS))
    assert table_of(tmp_path / "log.txt", head + rows) == {"step": [0, 1, 2, 3], "loss": LOSS}


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.txt"])
def test_utf16_and_gzip_are_read_as_the_text_in_them(tmp_path: Path, name: str) -> None:
    line = {
        "log.csv": "{},{}\n",
        "log.jsonl": '{{"step": {}, "loss": {}}}\n',
        "log.txt": "step {}: loss {}\n",
    }[name]
    head = "step,loss\n" if name == "log.csv" else ""
    text = head + "".join(line.format(i, v) for i, v in enumerate(LOSS))
    expected = {"step": [0, 1, 2, 3], "loss": LOSS}
    assert table_of(tmp_path / name, text, "utf-16") == expected
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    table = read_table(packed)
    assert {n: cells.values.tolist() for n, cells in table.columns.items()} == expected
    assert table.path == packed


def test_damaged_gzip_and_other_archives_are_named(tmp_path: Path) -> None:
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(b"step,loss\n" + b"1,2\n" * 9)[:-9])
    with pytest.raises(ConvertError, match=rf"{packed}: damaged gzip"):
        read_table(packed)
    packed.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ConvertError, match="compressed by zip: unpack it"):
        read_table(packed)
    packed.write_bytes(gzip.compress(b"\0\1\2"))
    with pytest.raises(ConvertError, match=f"^{packed}: neither text"):
        read_table(packed)


def test_gzip_is_unpacked_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 bytes unpack to 4 MB: they are not all written before they are refused."""
    monkeypatch.setattr(unpack, "LIMIT", 1 << 20)
    packed, rows = tmp_path / "log.csv.gz", b"step,loss\n" + b"1,2\n" * (1 << 18)
    packed.write_bytes(gzip.compress(rows[: 1 << 20]))
    assert read_table(packed).columns  # exactly the limit
    packed.write_bytes(gzip.compress(rows))
    with pytest.raises(ConvertError, match=rf"^{packed}: more than 0.000977 GiB .*gunzip"):
        read_table(packed)
    monkeypatch.undo()
    assert unpack.LIMIT == 2 << 30  # what docs/convert.md says
    assert len(read_table(packed).columns["step"].values) == 1 << 18


def test_gzip_within_gzip_is_refused(tmp_path: Path) -> None:
    """A file can unpack to itself."""
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(gzip.compress(b"step,loss\n1,2\n")))
    with pytest.raises(ConvertError, match=f"^{packed}: gzip within gzip"):
        read_table(packed)


def test_gzip_with_a_damaged_middle_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "log.csv.gz"
    content = bytearray(gzip.compress(b"step,loss\n" + b"1,2\n" * 9))
    content[10] = 0xFF  # the first block's type, which does not exist
    packed.write_bytes(content)
    with pytest.raises(ConvertError, match=rf"{packed}: damaged gzip"):
        read_table(packed)


def test_parquet_that_claims_to_be_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes hold a million equal numbers."""
    rows = 1 << 20
    file = tmp_path / "log.parquet"
    table = pa.table({"step": np.zeros(rows, np.int64), "loss": np.ones(rows)})
    pq.write_table(table, file, compression="zstd")
    assert file.stat().st_size < 1 << 14
    monkeypatch.setattr(unpack, "LIMIT", 1 << 23)
    with pytest.raises(ConvertError, match=rf"^{file}: {rows} rows of 2 columns, 0.0156 GiB"):
        read_table(file)


@pytest.mark.parametrize(
    "rows",
    [
        ['"step", "loss"', '"0", "2.5"', '"1", "1.25"'],
        ["step|loss", "0|2.5", "1|1.25"],
        ["| step | loss |", "|---|---|", "| 0 | 2.5 |", "| 1 | 1.25 |"],
        ["sep=;", "step;loss", "0;2,5", "1;1,25"],
    ],
)
def test_other_forms_of_a_table(tmp_path: Path, rows: list[str]) -> None:
    found = table_of(tmp_path / "log.csv", "\n".join(rows) + "\n")
    assert found == {"step": [0, 1], "loss": [2.5, 1.25]}


def test_a_column_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    assert table_of(tmp_path / "loss.txt", "2.5\n1.25\n") == {"loss": [2.5, 1.25]}


def test_text_of_another_encoding_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"not in UTF-8 .*: save it as UTF-8"):
        table_of(tmp_path / "log.csv", "step,Größe\n" + "1,2\n" * 99, "latin-1")
