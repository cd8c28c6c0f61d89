"""Evaluations whose own counter is not that of training. All values are made up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import converted


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def mmengine(epochs: int, size: int, every: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for i in range(size):
            step = (epoch - 1) * size + i + 1
            rows.append({"lr": 0.1, "loss": 5 - step / 100, "time": 0.5, "epoch": epoch,
                         "iter": step, "step": step})  # fmt: skip
        if epoch % every == 0:
            rows.append({"coco/AP": epoch / 100, "coco/AP (M)": -1.0, "time": 0.25, "step": epoch})
    return rows


def test_the_scalars_of_mmengine_are_on_one_axis(tmp_path: Path, out: Path) -> None:
    run = converted(lines(tmp_path / "scalars.json", mmengine(30, 6, 10)), out)
    assert run.scalar("loss").index.tolist() == list(range(1, 181))
    assert run.scalar("time").size == 180  # the time of an evaluation is another series
    evals = run.evals("val/coco/AP")
    assert evals["step"].tolist() == [60, 120, 180]
    assert evals["value"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert run.scalar("val/coco/AP (M)").tolist() == [-1.0] * 3
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any(note.startswith("3 rows of evaluations") for note in notes)


def test_mmengine_by_iterations_needs_no_change(tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(50, 2001, 50):
        rows.append({"lr": 0.1, "loss": 1.0, "step": step})
        if step % 500 == 0:
            rows.append({"aAcc": 90.0, "mIoU": step / 40, "mAcc": 70.0, "step": step})
    run = converted(lines(tmp_path / "scalars.json", rows), out)
    assert run.evals("mIoU")["step"].tolist() == [500, 1000, 1500, 2000]
    assert run.evals("mIoU")["value"].max() == 0.5
    assert run.scalar("loss").size == 40


def test_mmcv_by_iterations_counts_images_in_its_evaluations(tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = [{"env_info": "x", "seed": 7}]
    for step in range(50, 1001, 50):
        rows.append({"mode": "train", "epoch": 1 + step // 400, "iter": step, "loss": 1.0})
        if step % 500 == 0:
            rows.append({"mode": "val", "epoch": 1, "iter": 240, "lr": 0.1, "mIoU": 0.5})
    run = converted(lines(tmp_path / "a.log.json", rows), out)
    assert run.scalar("loss").index.tolist() == list(range(50, 1001, 50))
    assert run.evals("val/mIoU")["step"].tolist() == [500, 1000]


def test_evaluations_alone_stand_at_their_epochs(tmp_path: Path, out: Path) -> None:
    rows = [{"mode": "val", "epoch": e, "iter": 12, "bbox_mAP": e / 20} for e in range(1, 13)]
    run = converted(lines(tmp_path / "a.log.json", rows), out)
    assert run.evals("val/bbox_mAP")["step"].tolist() == list(range(1, 13))


def test_detectron2(tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(19, 2000, 20):
        row = {"iteration": step, "total_loss": 2.0, "loss_cls": 1.0, "fast_rcnn/cls_accuracy": 0.9}
        if (step + 1) % 500 == 0:
            row |= {
                "bbox/AP": step / 50,
                "bbox/AP50": step / 40,
                "bbox/APs": 3.0,
                "bbox/AP-cat": 9.0,
            }
        rows.append(row)
    run = converted(lines(tmp_path / "metrics.json", rows), out)
    assert set(run.evals()["metric"]) == {"bbox/AP", "bbox/AP50"}
    assert run.evals("bbox/AP")["step"].tolist() == [499, 999, 1499, 1999]
    assert run.evals("bbox/AP")["value"].max() == pytest.approx(0.3998)
    # an accuracy of the batches: a scalar
    assert run.scalar("fast_rcnn/cls_accuracy").size == 100


def test_an_epoch_of_one_iteration(tmp_path: Path, out: Path) -> None:
    run = converted(lines(tmp_path / "scalars.json", mmengine(10, 1, 2)), out)
    assert run.evals("val/coco/AP")["step"].tolist() == [2, 4, 6, 8, 10]


def test_rows_of_an_evaluation_with_steps_of_their_own_keep_them(tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = [{"mode": "val", "step": 0, "acc": 0.2}]
    for step in range(0, 100, 10):
        rows.append({"mode": "train", "step": step, "loss": 2.0})
        rows += [{"mode": "val", "step": step + 5, "acc": 0.3}] if step % 20 == 0 else []
    evals = converted(lines(tmp_path / "log.jsonl", rows), out).evals("val/acc")
    assert evals["step"].tolist() == [0, 5, 25, 45, 65, 85]


def test_a_step_of_an_evaluation_that_counts_epochs_is_none_of_its_own(
    tmp_path: Path, out: Path
) -> None:
    rows: list[dict[str, Any]] = [{"mode": "val", "epoch": 0, "step": 0, "acc": 0.1}]
    for epoch in range(1, 5):
        for i in range(10 * epoch - 9, 10 * epoch + 1):
            rows.append({"mode": "train", "epoch": epoch, "step": i, "loss": 2.0})
        rows.append({"mode": "val", "epoch": epoch, "step": epoch, "acc": 0.3})
    evals = converted(lines(tmp_path / "log.jsonl", rows), out).evals("val/acc")
    assert evals["step"].tolist() == [0, 10, 20, 30, 40]
