"""A loss that goes blank while its rows go on is not called healthy. All values are made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.diagnoses import diagnose
from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.store.reader import load

STEPS = 200
LOST = slice(STEPS - 30, None)


def losses() -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(0).normal(0, 0.02, STEPS)
    return 1 + 2 * np.exp(-np.arange(STEPS) / 60) + noise


def log(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": range(STEPS), "loss": losses(), **columns})


def accuracy(every: int) -> np.ndarray[Any, Any]:
    value = 0.1 + 0.6 * (1 - np.exp(-np.arange(STEPS) / 80))
    value[np.arange(STEPS) % every != 0] = np.nan
    return value


def verdict(source: Path, out: Path) -> tuple[str, list[str]]:
    convert(source, out)
    (run,) = diagnose(load(out))
    return run.verdict, run.gaps()


def as_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)  # NaN as a blank


def as_json(frame: pd.DataFrame, path: Path) -> None:
    frame.to_json(path, orient="records", lines=True)  # NaN as null


def with_words(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, na_rep="N/A")


@pytest.mark.parametrize("write", [as_csv, as_json, with_words])
@pytest.mark.parametrize("every", [None, 5])
def test_a_loss_of_nan_that_a_program_left_out_is_not_called_stable(
    write: Any, every: int | None, tmp_path: Path
) -> None:
    frame = log(**({} if every is None else {"val_acc": accuracy(every)}))
    write(frame, tmp_path / "whole.log")
    assert verdict(tmp_path / "whole.log", tmp_path / "whole") == ("stable", [])
    frame.loc[frame.index[LOST], "loss"] = np.nan
    write(frame, tmp_path / "lost.log")
    assert verdict(tmp_path / "lost.log", tmp_path / "lost") == (
        "unknown",
        ["loss blank in steps 170 to 199"],
    )


def test_an_accuracy_and_norms_of_layers_end_too(tmp_path: Path) -> None:
    norms = {f"grad_norm/blocks.{i}": 1 + losses() / 9 for i in range(3)}
    frame = log(val_acc=accuracy(5), **norms)
    frame.loc[frame.index[LOST], ["val_acc", "grad_norm/blocks.1"]] = np.nan
    as_csv(frame, tmp_path / "log.csv")
    found, gaps = verdict(tmp_path / "log.csv", tmp_path / "run")
    assert (found, gaps) == ("unknown", ["val_acc blank in steps 166 to 199"]), "one may be frozen"
    frame = log(**norms)
    frame.loc[frame.index[LOST], list(norms)] = np.nan
    as_csv(frame, tmp_path / "all.csv")
    found, gaps = verdict(tmp_path / "all.csv", tmp_path / "all")
    assert (found, gaps) == ("unknown", ["grad_norm of every layer blank in steps 170 to 199"])


def test_what_is_not_judged_may_end(tmp_path: Path) -> None:
    frame = log(reward=losses())
    frame.loc[frame.index[LOST], "reward"] = np.nan
    as_csv(frame, tmp_path / "log.csv")
    assert verdict(tmp_path / "log.csv", tmp_path / "run") == ("stable", [])


def test_a_series_that_another_takes_over_from_may_end(tmp_path: Path) -> None:
    """The loss of a first phase of training; a test at the end is no such thing."""
    frame = log()
    first = frame["step"] < STEPS / 2
    frame["fine_tuning_loss"] = frame["loss"].where(~first)
    frame["loss"] = frame["loss"].where(first)
    as_csv(frame, tmp_path / "log.csv")
    assert verdict(tmp_path / "log.csv", tmp_path / "run")[1] == []
    frame = log(test_acc=[*[np.nan] * (STEPS - 1), 0.5])
    frame.loc[frame.index[LOST], "loss"] = np.nan
    as_csv(frame, tmp_path / "test.csv")
    assert verdict(tmp_path / "test.csv", tmp_path / "other")[0] == "unknown"


@pytest.mark.parametrize(
    ("every", "after", "ended"), [(1, 2, 0), (1, 3, 1), (10, 29, 0), (10, 30, 1)]
)
def test_a_series_has_ended_after_three_times_its_usual_distance(
    every: int, after: int, ended: int, tmp_path: Path
) -> None:
    last = STEPS - 1 - after
    frame = log()
    frame["loss"] = frame["loss"].where(
        ((last - frame["step"]) % every == 0) & (frame["step"] <= last)
    )
    frame["lr"] = 0.1
    as_csv(frame, tmp_path / "log.csv")
    assert len(verdict(tmp_path / "log.csv", tmp_path / "run")[1]) == ended


def test_rows_of_training_and_of_validation_take_turns(tmp_path: Path) -> None:
    rows = []
    for epoch in range(20):
        rows += [{"step": 50 * epoch + i, "loss": 1 / (epoch + 1)} for i in range(0, 50, 5)]
        rows += [{"step": 50 * epoch + 49, "val_loss": 1 / (epoch + 1), "val_acc": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdict(tmp_path / "log.jsonl", tmp_path / "run")[1] == []


def test_several_evaluations_at_one_step_are_no_later_steps(tmp_path: Path) -> None:
    """As Hugging Face logs several sets after each epoch, and a summary at the end."""
    rows: list[dict[str, float]] = []
    for epoch in range(1, 4):
        steps = range(100 * (epoch - 1) + 1, 100 * epoch + 1)
        rows += [{"step": step, "loss": float(losses()[step % STEPS])} for step in steps]
        rows += [{"step": 100 * epoch, f"eval_{name}_loss": 1.0} for name in "abcde"]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdict(tmp_path / "log.jsonl", tmp_path / "run")[1] == []


def test_a_part_of_a_total_may_end_and_a_counter_takes_no_place(tmp_path: Path) -> None:
    frame = log(warmup_loss=losses())
    frame["warmup_loss"] = frame["warmup_loss"].where(frame["step"] < 60)
    as_csv(frame, tmp_path / "part.csv")
    assert verdict(tmp_path / "part.csv", tmp_path / "part")[1] == []
    frame = log(skipped_steps=np.where(np.arange(STEPS) < 170, np.nan, 1.0))
    frame.loc[frame.index[LOST], "loss"] = np.nan
    as_csv(frame, tmp_path / "counter.csv")
    assert verdict(tmp_path / "counter.csv", tmp_path / "counter")[0] == "unknown"


@pytest.mark.parametrize(("first", "last", "blank"), [(60, 180, 1), (60, 80, 1), (60, 70, 0)])
def test_a_hole_of_a_tenth_of_the_steps_is_blank(
    first: int, last: int, blank: int, tmp_path: Path
) -> None:
    frame = log(lr=0.1)
    frame.loc[first : last - 1, "loss"] = np.nan
    as_csv(frame, tmp_path / "log.csv")
    texts = [f"loss blank in steps {first} to {last - 1}"] * blank
    assert verdict(tmp_path / "log.csv", tmp_path / "run")[1] == texts


def test_an_attempt_that_was_given_up_is_not_blank(tmp_path: Path) -> None:
    frame = pd.concat([log()[:120], log()[100:110]])  # went on at 100, and is under way
    as_csv(frame, tmp_path / "log.csv")
    assert verdict(tmp_path / "log.csv", tmp_path / "run") == ("stable", [])


def test_phases_that_take_turns_are_not_blank(tmp_path: Path) -> None:
    """A GAN whose players are trained for 20 steps each."""
    turn = np.arange(STEPS) // 20 % 2 == 0
    frame = pd.DataFrame({"step": range(STEPS), "loss_d": losses(), "loss_g": losses(), "lr": 0.1})
    frame["loss_d"], frame["loss_g"] = frame["loss_d"].where(turn), frame["loss_g"].where(~turn)
    as_csv(frame, tmp_path / "log.csv")
    assert verdict(tmp_path / "log.csv", tmp_path / "run")[1] == []


def test_tensorboard_may_count_epochs_beside_steps(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "epochs") as writer:
        for step in range(600):
            writer.add_scalar("loss", 1 + 1 / (step + 1), step)
        for epoch in range(30):
            writer.add_scalar("val/acc", 0.5 + epoch / 100, epoch)
    assert verdict(tmp_path / "epochs", tmp_path / "a")[1] == []
    with SummaryWriter(tmp_path / "left out") as writer:
        for step in range(600):
            writer.add_scalar("lr", 0.1, step)
            if step < 400:
                writer.add_scalar("loss", 1 + 1 / (step + 1), step)
    assert verdict(tmp_path / "left out", tmp_path / "b")[1] == ["loss blank in steps 400 to 599"]


def test_analyze_and_report_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = log()
    frame.loc[frame.index[LOST], "loss"] = np.nan
    as_csv(frame, tmp_path / "log.csv")
    said = "log: loss blank in steps 170 to 199. Some programs write NaN as a blank."
    assert main(["analyze", str(tmp_path / "log.csv")]) == 0
    assert said in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "log.csv"), "-o", str(page)]) == 0
    assert said in " ".join(page.read_text().split())
