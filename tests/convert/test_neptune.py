"""Exports of Neptune, in the form that neptune-exporter 0.1.0 gives them."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stabkit
from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from stabkit.convert.sources import has_logs

SCHEMA = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_path", pa.string()),
        ("attribute_type", pa.string()),
        ("step", pa.decimal128(18, 6)),
        ("timestamp", pa.timestamp("ms", tz="UTC")),
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", pa.timestamp("ms", tz="UTC")),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", pa.struct([("path", pa.string())])),
    ]
)


def series(path: str, values: dict[float, float], run: str = "SAN-1") -> list[dict[str, Any]]:
    return [
        {
            "project_id": "team/vit", "run_id": run, "attribute_path": path,
            "attribute_type": "float_series", "step": Decimal(str(step)), "float_value": value,
        }
        for step, value in values.items()
    ]  # fmt: skip


def parameter(path: str, value: float, run: str = "SAN-1") -> dict[str, Any]:
    return {
        "project_id": "team/vit", "run_id": run, "attribute_path": path, "attribute_type": "float",
        "float_value": value,
    }  # fmt: skip


def part(folder: Path, rows: list[dict[str, Any]], run: str = "SAN-1", number: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{run}-1a2b3c4d5e6f7a8b_part_{number}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
    return file


LOSS = {float(step): 2 / (step + 1) for step in range(12)}
ACCURACY = {float(step): 40.0 + step for step in range(0, 12, 2)}


def test_the_series_of_a_run_come_back_from_all_its_parts(tmp_path: Path) -> None:
    project = tmp_path / "exports" / "data" / "team_vit-0011223344556677"
    early = {step: value for step, value in LOSS.items() if step < 7}
    late = {step: value for step, value in LOSS.items() if step >= 7} | {12.0: np.nan}
    usage = series("monitoring/1a2b/cpu", {0.0: 31.0, 1.0: 30.0})
    part(project, [parameter("parameters/lr", 1e-3), *series("train/loss", early), *usage])
    part(project, series("train/loss", late) + series("val/acc", ACCURACY), number=1)
    part(project, series("train/loss", LOSS, "SAN-2"), "SAN-2")
    assert has_logs(tmp_path / "exports")
    runs = convert(tmp_path / "exports", tmp_path / "runs")
    assert [(run.folder.name, run.format) for run in runs] == [
        ("SAN-1", "neptune"), ("SAN-2", "neptune"),
    ]  # fmt: skip
    assert runs[0].plan.left_out == {"monitoring/1a2b/cpu": "of the machine"}
    run = stabkit.open_run(tmp_path / "runs" / "SAN-1")
    assert sorted(run.scalars()["name"].unique()) == ["train/loss"]
    assert run.scalar("train/loss").index.tolist() == list(range(13))
    assert run.scalar("train/loss").tolist()[:12] == [*LOSS.values()]
    assert np.isnan(run.scalar("train/loss")[12]), "a value that is not finite is no blank"
    evals = run.evals("val/acc")
    assert evals["value"].tolist() == pytest.approx([value / 100 for value in ACCURACY.values()])


def test_one_file_is_a_run_and_steps_with_fractions_are_counted(tmp_path: Path) -> None:
    halves = {step / 2: value for step, value in LOSS.items()}
    file = part(tmp_path, series("loss", halves) + series("other", {1.0: 5.0, 2.0: 6.0}))
    (run,) = convert(file, tmp_path / "run")
    found = stabkit.open_run(tmp_path / "run")
    assert found.scalar("loss").index.tolist() == list(range(12))
    assert found.scalar("other").index.tolist() == [2, 4], "at the same places as in the loss"
    assert run.plan.notes == ["steps with fractions are counted"]


def test_what_holds_no_series_is_refused(tmp_path: Path) -> None:
    file = part(tmp_path, [parameter("parameters/lr", 1e-3)])
    with pytest.raises(ConvertError, match="holds no series of numbers"):
        convert(file, tmp_path / "run")
    some = part(tmp_path, series("loss", LOSS), number=1)
    with pytest.raises(ConvertError, match="Neptune's series carry their own step"):
        convert(some, tmp_path / "run", ["loss=step"])
