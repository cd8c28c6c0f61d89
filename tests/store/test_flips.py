"""A flipped bit in a part file: what is read then is what was written, or the part is named."""

import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from stabkit.rundir import LeftOutWarning
from stabkit.store.schema import TABLES
from stabkit.store.tables import read_table
from stabkit.store.writer import Writer, steps_in, trim
from tests.store.test_store import fill

FLIPS = 400  # a table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One part a table, so small that most of its bytes say how to read the others."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    fill(Writer(folder, "abcd"), 0, 8)
    return folder


def flipped(content: bytes, *bits: int) -> bytes:
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.lengthy
@pytest.mark.parametrize("at_once", [1, 2, 20])
@pytest.mark.parametrize("name", TABLES)
def test_flipped_bits_are_never_read_as_values(run: Path, name: str, at_once: int) -> None:
    (part,) = (run / name).iterdir()
    content, whole = part.read_bytes(), read_table(run / name, name)
    rng = random.Random(at_once)
    refused = 0
    try:
        for _ in range(FLIPS):
            part.write_bytes(flipped(content, *rng.sample(range(8 * len(content)), at_once)))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = read_table(run / name, name)
            if caught:
                refused += 1
                assert {w.category for w in caught} == {LeftOutWarning}
                assert str(caught[0].message).startswith(f"{part}: left out, ")
                assert found.empty
            else:
                pd.testing.assert_frame_equal(found, whole)
    finally:
        part.write_bytes(content)
    assert refused > 0.9 * FLIPS


@pytest.mark.parametrize("name", TABLES)
def test_a_flip_anywhere_in_a_part_is_refused_where_a_run_goes_on(run: Path, name: str) -> None:
    (part,) = (run / name).iterdir()
    content = part.read_bytes()
    try:
        for byte in range(4, len(content) - 30, 97):
            part.write_bytes(flipped(content, 8 * byte))
            for read in (steps_in, lambda folder: trim(folder, 99)):
                with pytest.raises(ValueError, match=rf"{part}: not readable .* move it away"):
                    read(run)
    finally:
        part.write_bytes(content)


@pytest.mark.parametrize("name", TABLES)
def test_a_part_is_a_parquet_file_with_checksums_to_others(run: Path, name: str) -> None:
    (part,) = (run / name).iterdir()
    assert pq.read_table(part, page_checksum_verification=True).num_rows > 0
    assert pq.ParquetFile(part).read().equals(pq.read_table(part))


def test_a_part_without_a_seal_is_read(tmp_path: Path) -> None:
    fill(Writer(tmp_path, "abcd"), 0, 8)
    before = read_table(tmp_path / "scalars", "scalars")
    (part,) = (tmp_path / "scalars").iterdir()
    pq.write_table(pq.read_table(part, partitioning=None), part, compression="zstd")
    pd.testing.assert_frame_equal(read_table(tmp_path / "scalars", "scalars"), before)
    trim(tmp_path, 5)
    assert read_table(tmp_path / "scalars", "scalars")["step"].tolist() == [0, 1, 2, 3, 4]


def test_a_copy_beside_the_parts_does_not_stop_the_next(tmp_path: Path) -> None:
    fill(Writer(tmp_path, "abcd"), 0, 2)
    (part,) = (tmp_path / "scalars").iterdir()
    (part.parent / "part-000000 (copy).parquet").write_bytes(part.read_bytes())
    writer = Writer(tmp_path, "abcd")
    writer.add_scalars(np.arange(2, 4), "loss", np.ones(2))
    writer.flush()
    assert (tmp_path / "scalars" / "part-000001.parquet").exists()
