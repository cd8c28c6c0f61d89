"""Which column is the step, and what becomes of steps that start again. All values are made up."""

import json
from pathlib import Path

import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted


def csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("names", "step"),
    [
        ("epoch,loss", "epoch"),
        ("      epoch,   loss", "epoch"),  # padded, as YOLO pads
        ("Epoch,loss", "Epoch"),
        ("it,loss", "it"),
        ("num_updates,loss", "num_updates"),
        ("current_steps,loss", "current_steps"),
        ("train/global_step,loss", "train/global_step"),
        (",loss", ""),  # pandas' index
    ],
)
def test_names_of_steps(names: str, step: str, tmp_path: Path, out: Path) -> None:
    run = converted(csv(tmp_path / "log.csv", names, "0,2.5", "1,1.5"), out)
    assert run.scalar("loss").to_dict() == {0: 2.5, 1: 1.5}
    assert step.strip() not in run.scalars()["name"].unique()


def test_a_counter_of_steps_comes_before_one_of_rows_and_that_before_epochs(
    tmp_path: Path, out: Path
) -> None:
    source = csv(
        tmp_path / "a.csv", "epoch,_step,trainer/global_step,loss", "0,0,50,2", "0,1,100,1"
    )
    assert converted(source, out).scalar("loss").index.tolist() == [50, 100]
    source = csv(tmp_path / "b.csv", "epoch,_step,loss", "0,7,2", "0,8,1")
    assert converted(source, out.with_name("b")).scalar("loss").index.tolist() == [7, 8]


def test_a_column_is_mapped_by_its_name_without_blanks(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path / "log.csv", "   n,   loss", "  3,  2.5", "  4, 1.5")
    assert converted(source, out, "n=step").scalar("loss").to_dict() == {3: 2.5, 4: 1.5}


def test_rows_count_where_asked(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path / "log.csv", "loss,val_loss", "2,3", "1,2")
    with pytest.raises(ConvertError, match="--row-step"):
        convert(source, out)
    assert converted(source, out, row_step=True).scalar("val_loss").to_dict() == {0: 3, 1: 2}
    with pytest.raises(ConvertError, match="one of them"):
        convert(source, out.with_name("again"), ["loss=step"], row_step=True)


def test_iterations_that_start_again_are_joined_with_the_epoch(tmp_path: Path, out: Path) -> None:
    """A log as mmcv writes it: every 10th of 30 iterations, and evaluations that count 7."""
    rows = [{"seed": 7}]
    for epoch in (1, 2, 3):
        rows += [
            {"mode": "train", "epoch": epoch, "iter": i, "loss": epoch + i / 100, "lr": 0.1}
            for i in (10, 20, 30)
        ]
        rows += [{"mode": "val", "epoch": epoch, "iter": 7, "accuracy": 30.0 + epoch, "lr": 0.1}]
    (tmp_path / "a.log.json").write_text("\n".join(map(json.dumps, rows)))
    run = converted(tmp_path / "a.log.json", out)
    assert run.scalar("loss").index.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert run.scalar("lr").size == 9
    evals = run.evals("val/accuracy")
    assert evals["step"].tolist() == [30, 60, 90]
    assert evals["value"].tolist() == pytest.approx([0.31, 0.32, 0.33])
    (note,) = (n for n in run.dir.read_meta()["converted"]["notes"] if "starts again" in n)
    assert "30 to an epoch" in note


def test_what_a_resume_gave_up_is_left_out_and_said(tmp_path: Path, out: Path) -> None:
    first = [f"{e},{100 - e}" for e in range(30)]
    again = [f"{e},{50 - e}" for e in range(15, 25)]
    run = converted(csv(tmp_path / "log.csv", "epoch,loss", *first, *again), out)
    loss = run.scalar("loss")
    assert loss.index.tolist() == list(range(25))
    assert loss.loc[14] == 86
    assert loss.loc[15] == 35
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any("15 values left out of attempts that were given up" in note for note in notes)


def test_a_log_in_no_order_is_sorted(tmp_path: Path, out: Path) -> None:
    rows = [f"{step},{step}" for step in (9, 8, 7, 6, 5, 4)]
    run = converted(csv(tmp_path / "log.csv", "step,loss", *rows), out)
    assert run.scalar("loss").index.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_late_row_of_another_series_gives_nothing_up(tmp_path: Path, out: Path) -> None:
    rows = [f"{step},{step}," for step in range(20)]
    rows.insert(12, "8,,0.5")
    run = converted(csv(tmp_path / "log.csv", "step,loss,val_acc", *rows), out)
    assert run.scalar("loss").size == 20


def test_steps_that_begin_anew_again_and_again_are_refused(tmp_path: Path, out: Path) -> None:
    rows = [f"{i},{i}" for _ in range(3) for i in range(10)]
    with pytest.raises(ConvertError, match=r"start from the beginning 2 times.*--row-step"):
        convert(csv(tmp_path / "log.csv", "iter,loss", *rows), out)


def test_a_summary_of_last_values_is_no_run(tmp_path: Path, out: Path) -> None:
    (tmp_path / "wandb-summary.json").write_text('{"_step": 900, "loss": 0.5, "val/acc": 0.9}')
    with pytest.raises(ConvertError, match=r"holds one step.*scan_history"):
        convert(tmp_path / "wandb-summary.json", out)


def test_a_fraction_that_may_be_percent_is_said_and_can_be_told(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path / "log.csv", "step,val_acc1", "0,0.1", "1,0.12")
    run = converted(source, out)
    assert run.evals("val_acc1")["value"].tolist() == pytest.approx([0.1, 0.12])
    (note,) = run.dir.read_meta()["converted"]["notes"]
    assert "--map val_acc1=percent:val_acc1" in note
    run = converted(source, out.with_name("percent"), "val_acc1=percent:val_acc1")
    assert run.evals("val_acc1")["value"].tolist() == pytest.approx([0.001, 0.0012])


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("val_err", "val_acc"),
        ("valError", "valacc"),
        ("test/err1", "test/acc1"),
        ("eval_error_rate", "eval_acc"),
    ],
)
def test_a_share_of_errors_is_judged_when_it_is_called_one(tmp_path, out, name, accuracy):
    source = csv(tmp_path / "log.csv", f"step,{name}", "0,90", "1,60", "2,35.5")
    run = converted(source, out)
    assert run.evals().empty, "it may be the mean size of an error"
    assert name in set(run.scalars()["name"])
    notes = run.dir.read_meta()["converted"]["notes"]
    assert f"{name}, if it is the share of errors: --map {name}=error:{accuracy}" in notes
    run = converted(source, out.with_name("mapped"), f"{name}=error:{accuracy}")
    assert run.evals()["value"].tolist() == pytest.approx([0.1, 0.4, 0.645])


def test_an_error_that_is_no_share_gets_no_advice(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path / "log.csv", "step,val_err,train_err,stderr", "0,900,0.5,1", "1,7,0.4,1")
    run = converted(source, out)
    assert not any("error:" in note for note in run.dir.read_meta()["converted"]["notes"])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0.3, 0.5, 0.6, 61.0, 63.0), True),
        ((0.1, 0.4, 0.9, 3.0, 12.0), False),  # percent from the start, as on ImageNet
        ((0.6, 61.0, 62.0, 63.0), False),  # a single low value is no unit
    ],
)
def test_an_accuracy_that_changes_its_unit_is_told(tmp_path, out, values, told):
    rows = (f"{step},{value}" for step, value in enumerate(values))
    run = converted(csv(tmp_path / "log.csv", "step,val_acc", *rows), out)
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any("val_acc jumps about a hundredfold at step 3" in note for note in notes) == told


def test_the_history_of_a_trainer_state(tmp_path: Path, out: Path) -> None:
    history = [{"step": s, "loss": 3 - s / 100, "grad_norm": 0.5} for s in (10, 20, 30)]
    state = {"global_step": 30, "is_world_process_zero": True, "log_history": history}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state, indent=1))
    run = converted(tmp_path / "trainer_state.json", out)
    assert run.scalar("loss").index.tolist() == [10, 20, 30]
    assert set(run.scalars()["name"]) == {"loss", "grad_norm"}


def test_a_log_that_counts_epochs_alone_says_so(tmp_path: Path, out: Path) -> None:
    run = converted(csv(tmp_path / "a.csv", "epoch,loss", "0,3", "1,2"), out)
    assert run.dir.read_meta()["converted"]["notes"][0].startswith("a step is an epoch")
    source = csv(tmp_path / "b.csv", "epoch,loss,step", "0,3,10", "0,2,20")
    assert not converted(source, out.with_name("b")).dir.read_meta()["converted"]["notes"]


def test_an_epoch_that_is_a_fraction_is_counted_or_a_series(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path / "a.csv", "epoch,loss", "0.25,3", "0.5,2", "0.5,2", "0.75,1")
    run = converted(source, out)
    assert run.scalar("loss").to_dict() == {0: 3, 1: 2, 2: 1}
    assert "step 2 is 0.75" in run.dir.read_meta()["converted"]["notes"][0]
    source = csv(tmp_path / "b.csv", "epoch,loss,step", "0.25,3,10", "0.5,2,20")
    run = converted(source, out.with_name("b"))
    assert run.scalar("epoch").to_dict() == {10: 0.25, 20: 0.5}


@pytest.mark.parametrize("name", ["batch", "batch_idx", "step"])
def test_batches_from_zero_are_joined_with_the_epoch(name: str, tmp_path: Path, out: Path) -> None:
    rows = [f"{e},{i},{e}.{i}" for e in range(3) for i in range(4)]
    run = converted(csv(tmp_path / "a.csv", f"epoch,{name},loss", *rows), out)
    assert run.scalar("loss").index.tolist() == list(range(12))


def test_a_constant_column_is_no_step_where_another_counts(tmp_path: Path, out: Path) -> None:
    rows = [f"{e},64,1000,{9 - e}" for e in range(5)]
    run = converted(csv(tmp_path / "a.csv", "epoch,batch,steps,loss", *rows), out)
    assert run.scalar("loss").to_dict() == {e: 9 - e for e in range(5)}


def test_counters_that_say_the_step_again_are_left_out(tmp_path: Path, out: Path) -> None:
    rows = [f"{i},{s},{s},{i},{9 - i}" for i, s in enumerate(range(0, 50, 10))]
    run = converted(csv(tmp_path / "a.csv", ",step,iter,_step,loss", *rows), out)
    assert run.scalars()["name"].unique().tolist() == ["loss"]
    left_out = run.dir.read_meta()["converted"]["left_out"]
    assert set(left_out) == {"(no name)", "iter", "_step"}


def test_the_error_gives_the_option_that_helps(tmp_path: Path, out: Path) -> None:
    for header, rows, options in (
        ("loss,val_loss", ["2,3", "1,2"], ("--row-step",)),
        ("samples,loss", ["64,3", "128,2"], ("--map=samples=step",)),
        ("samples,loss", ["64,3", "64,2"], ("--row-step",)),
    ):
        with pytest.raises(ConvertError) as error:
            convert(csv(tmp_path / "a.csv", header, *rows), out)
        assert error.value.options == options
