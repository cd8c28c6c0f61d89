"""Logs in the forms that people have, without any option. All values are made up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted


def levels(count: int, top: float = 6.0, end: float = 1.5) -> list[float]:
    """Return a loss that falls, with a little noise."""
    rng = np.random.default_rng(count)
    fall = end + (top - end) * np.exp(-np.arange(count) / (count / 4))
    return [round(float(x), 4) for x in fall * np.exp(0.01 * rng.normal(size=count))]


def rising(count: int, end: float = 0.75) -> list[float]:
    return [round(end - (end - 0.08) * math.exp(-i / (count / 5)), 4) for i in range(count)]


def write(path: Path, header: str, *columns: list[float]) -> Path:
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_keras_training_log(tmp_path: Path, out: Path) -> None:
    """`epoch` is the step; `accuracy` is of training and `val_accuracy` is not."""
    acc, loss = rising(60), levels(60)
    source = write(
        tmp_path / "training.log", "epoch,accuracy,loss,val_accuracy,val_loss",
        list(range(60)), acc, loss, [a - 0.03 for a in acc], loss,
    )  # fmt: skip
    run = converted(source, out)
    assert run.scalar("loss").index.tolist() == list(range(60))
    assert set(run.evals()["metric"]) == {"val_accuracy"}
    assert run.scalar("accuracy").size == 60


@pytest.mark.parametrize(
    ("score", "stored"),
    [("metrics/mAP_0.5", "metrics/mAP_0.5"), ("metrics/mAP50(B)", "metrics/mAP50(B)"),
     ("metrics/mAP_0.5:0.95", "metrics/mAP_0.5:0.95")],
)  # fmt: skip
def test_yolo_results(score: str, stored: str, tmp_path: Path, out: Path) -> None:
    """The header is padded with blanks, and mAP is an evaluation."""
    header = f"{'epoch':>12},{'train/box_loss':>20},{score:>20},{'metrics/recall':>20}"
    rows = [f"{i:12},{0.1 - i / 1000:20.4f},{i / 50:20.4f},{0.5:20.4f}" for i in range(40)]
    (tmp_path / "results.csv").write_text("\n".join([header, *rows]))
    run = converted(tmp_path / "results.csv", out)
    evals = run.evals(stored)
    assert evals["step"].tolist() == list(range(40))
    assert evals["value"].tolist() == pytest.approx([i / 50 for i in range(40)])
    assert set(run.scalars()["name"]) == {"train/box_loss", "metrics/recall"}


def test_inf_in_an_averaged_gradient_norm_is_an_overflow(tmp_path: Path, out: Path) -> None:
    """BEiT with fp16: the mean over an epoch in which the scaler skipped a step."""
    rows = [
        {"train_loss": loss, "train_grad_norm": math.inf if e in (5, 9) else 1.4,
         "test_acc1": 100 * acc, "epoch": e}
        for e, (loss, acc) in enumerate(zip(levels(35), rising(35), strict=True))
    ]  # fmt: skip
    (tmp_path / "log.txt").write_text("\n".join(map(json.dumps, rows)))
    run = converted(tmp_path / "log.txt", out)
    assert np.isinf(run.scalar("train_grad_norm").loc[[5, 9]]).all()
    assert [(e["kind"], e["step"], e["names"]) for e in run.dir.read_entries()] == [
        ("overflow", 5, ["train_grad_norm"]),
        ("overflow", 9, ["train_grad_norm"]),
    ]
    assert run.evals("test_acc1")["value"].max() < 1


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, out: Path) -> None:
    loss = levels(100)
    loss[70:] = [math.nan] * 30
    run = converted(write(tmp_path / "a.csv", "step,loss,gnorm", list(range(100)), loss, loss), out)
    assert [(e["kind"], e["step"], e["names"]) for e in run.dir.read_entries()] == [
        ("nonfinite", 70, ["loss"]),
        ("overflow", 70, ["gnorm"]),  # whether it came back is for the diagnosis to say
    ]


def test_layers_that_overflow_are_named_in_depth_order(tmp_path: Path, out: Path) -> None:
    names = ["grad_norm/norm", "grad_norm/blocks.0", "param_norm/blocks.0"]
    bad = [1.0, math.inf, 1.0]
    source = write(tmp_path / "a.csv", ",".join(["step", *names]), [0, 1, 2], bad, bad, [1.0] * 3)
    (event,) = converted(source, out).dir.read_entries()
    assert (event["kind"], event["step"], event["layers"]) == ("overflow", 1, ["blocks.0", "norm"])


def test_hugging_face_trainer_state(tmp_path: Path, out: Path) -> None:
    """`epoch` is a fraction; evaluations are rows of their own at a step of training."""
    history = [
        {"epoch": s / 700, "grad_norm": 0.6, "learning_rate": 1e-4, "loss": loss, "step": s}
        for s, loss in zip(range(10, 2010, 10), levels(200), strict=True)
    ]
    history.insert(60, {"epoch": 600 / 700, "eval_accuracy": 0.61, "eval_loss": 2.0, "step": 600})
    history += [{"epoch": 2000 / 700, "eval_accuracy": 0.7, "eval_loss": 1.0, "step": 2000}]
    history += [{"epoch": 2000 / 700, "step": 2000, "train_loss": 2.0, "train_runtime": 9.5}]
    state = {"best_metric": None, "is_world_process_zero": True, "log_history": history}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state, indent=1))
    run = converted(tmp_path / "trainer_state.json", out)
    assert run.scalar("loss").size == 200
    assert run.evals("eval_accuracy")["step"].tolist() == [600, 2000]
    # one step, two rows, equal epochs: nothing was lost, so nothing is said
    assert not any("twice" in note for note in run.dir.read_meta()["converted"]["notes"])


def test_hugging_face_stdout_has_epochs_alone(tmp_path: Path, out: Path) -> None:
    lines = [f"{{'loss': {loss}, 'grad_norm': nan, 'epoch': {i / 50:.2f}}}"
             for i, loss in enumerate(levels(100))]  # fmt: skip
    (tmp_path / "out.log").write_text("Loading\n" + "\n".join(lines) + "\n")
    run = converted(tmp_path / "out.log", out)
    assert run.scalar("loss").to_dict() == dict(enumerate(levels(100)))
    assert run.scalar("grad_norm").isna().all()
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any("step 99 is 1.98" in note for note in notes)


def test_a_chart_of_one_run_over_another_axis(tmp_path: Path, out: Path) -> None:
    columns = ["wise-sun-3 - train/loss" + end for end in ("", "__MIN", "__MAX")]
    loss = levels(50)
    for axis, names in (("train/global_step", columns), ("Step", columns[:1])):
        header = ",".join(f'"{name}"' for name in [axis, *names])
        steps = list(range(0, 500, 10))
        source = write(tmp_path / "chart.csv", header, steps, *[loss] * len(names))
        (made,) = convert(source, out / axis.replace("/", "-"))
        assert made.format == "wandb"
        assert made.plan.scalars["train/loss"].steps.tolist() == steps


def test_percent_is_decided_for_the_whole_column(tmp_path: Path, out: Path) -> None:
    accuracy = [0.4, 0.9, 3.5, 40.0]
    run = converted(write(tmp_path / "a.csv", "step,val_acc", [0, 1, 2, 3], accuracy), out)
    assert run.evals("val_acc")["value"].tolist() == pytest.approx([0.004, 0.009, 0.035, 0.4])


def test_numbers_without_names(tmp_path: Path, out: Path) -> None:
    (tmp_path / "losses.txt").write_text("2.5\n2.25\nnan\n2\n")
    with pytest.raises(ConvertError, match="no column of steps") as error:
        convert(tmp_path / "losses.txt", out)
    assert error.value.options == ("--row-step",)
    run = converted(tmp_path / "losses.txt", out, row_step=True)
    np.testing.assert_array_equal(run.scalar("losses"), [2.5, 2.25, math.nan, 2])


def test_columns_between_blanks(tmp_path: Path, out: Path) -> None:
    """As numpy.savetxt writes them, with and without a header."""
    np.savetxt(tmp_path / "a.txt", [[0, 2.5], [10, 2.0], [20, 1.5]], header="step  loss")
    assert converted(tmp_path / "a.txt", out).scalar("loss").to_dict() == {0: 2.5, 10: 2, 20: 1.5}
    np.savetxt(tmp_path / "b.txt", [[0, 2.5], [10, 2.0], [20, 1.5]])
    with pytest.raises(ConvertError) as error:
        convert(tmp_path / "b.txt", out.with_name("b"))
    assert error.value.options == ("--map=column 1=step",)
    run = converted(tmp_path / "b.txt", out.with_name("b"), "column 1=step")
    assert run.scalar("column 2").to_dict() == {0: 2.5, 10: 2, 20: 1.5}


def test_a_line_of_text_before_or_among_json_lines(tmp_path: Path, out: Path) -> None:
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(levels(20))]
    for name, text in (
        ("before", ["Training starts", *lines]),
        ("among", [*lines[:9], "saving a checkpoint", *lines[9:]]),
        ("prefix", [f"2024-01-01 10:00:00 INFO train {line}" for line in lines]),
    ):
        (tmp_path / name).write_text("\n".join(text))
        run = converted(tmp_path / name, out / name)
        assert run.scalar("loss").to_dict() == dict(enumerate(levels(20)))
        notes = run.dir.read_meta()["converted"]["notes"]
        assert bool(notes) == (name != "prefix")


def test_statistics_of_a_gradient_that_are_no_norm(tmp_path: Path, out: Path) -> None:
    """OLMo logs `.norm`, `.avg`, `.min` and `.max` of every gradient."""
    prefix = "optim/grad/module.transformer.blocks.0.ff_proj.weight"
    header = ",".join(["_step", *(f"{prefix}.{what}" for what in ("norm", "avg", "min", "max"))])
    source = write(tmp_path / "history.csv", header, [0, 1], [2.0, 3.0], *[[0.5, 0.5]] * 3)
    run = converted(source, out)
    signals = run.signals("grad_norm")
    assert signals["grad_norm"].tolist() == [2.0, 3.0]
    assert set(run.scalars()["name"]) == {f"{prefix}.{what}" for what in ("avg", "min", "max")}


def test_fastai_history(tmp_path: Path, out: Path) -> None:
    """Its metrics are those of the validation set, under names that do not say so."""
    rows = [f"{e},{5 - e},{6 - e},0.{e},00:1{e}" for e in range(5)]
    source = tmp_path / "history.csv"
    source.write_text("\n".join(["epoch,train_loss,valid_loss,accuracy,time", *rows]))
    run = converted(source, out)
    assert run.evals("accuracy")["value"].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_checkpoints_of_hugging_face_hold_one_history(tmp_path: Path, out: Path) -> None:
    for last in (10, 30, 20):
        history = [{"step": s, "loss": 9 - s / 10, "epoch": s / 40} for s in range(0, last, 5)]
        folder = tmp_path / "model" / f"checkpoint-{last}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    run = converted(tmp_path / "model", out)
    assert run.scalar("loss").index.tolist() == [0, 5, 10, 15, 20, 25]


def test_a_folder_of_results_and_one_of_unknown_texts(tmp_path: Path, out: Path) -> None:
    for name in ("exp", "exp2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write(tmp_path / "runs" / name / "results.csv", "epoch,loss", [0, 1, 2], [3.0, 2.0, 1.0])
    made = convert(tmp_path / "runs", out)
    assert [run.folder.name for run in made] == ["exp", "exp2"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "stdout.log").touch()
    with pytest.raises(ConvertError, match=r"name the file itself, such as stdout\.log"):
        convert(tmp_path / "texts", out.with_name("b"))
