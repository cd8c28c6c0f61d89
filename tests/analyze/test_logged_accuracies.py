"""An accuracy that a loop only logged is judged, by a rule, and the words say so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabkit
from stabkit.convert.convert import convert
from stabkit.rundir import RunDir
from stabkit.store.accuracies import logged_accuracies
from stabkit.store.writer import Writer
from tests.analyze.conftest import diagnosed
from tests.monitor.toy import Toy

STEPS = np.arange(400)
EVERY = STEPS[::10]


def scalars(**series: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    return pd.concat(
        [pd.DataFrame({"step": s, "name": name, "value": v}) for name, (s, v) in series.items()],
        ignore_index=True,
    ).sort_values("step")


def rising(dip: bool, scale: float = 100.0) -> np.ndarray:
    """Return an accuracy that rises from 0.3 to 0.7, in percent, and falls by 0.2 for a while."""
    noise = np.random.default_rng(0).normal(size=len(EVERY))
    values = np.linspace(0.3, 0.7, len(EVERY)) + 0.004 * noise
    values[20:24] -= 0.2 * dip
    return values * scale


@pytest.mark.lengthy
@pytest.mark.parametrize(("dip", "verdict"), [(True, "unstable"), (False, "stable")])
def test_an_accuracy_that_a_monitor_logged_is_judged(
    tmp_path: Path, dip: bool, verdict: str
) -> None:
    toy, accuracy = Toy(), dict(zip(EVERY.tolist(), rising(dip).tolist(), strict=True))
    with toy.monitor(tmp_path / "a", flush_every=50) as monitor:
        for step in STEPS.tolist():
            toy.steps(1, monitor)
            if step in accuracy:
                monitor.log(val_acc=accuracy[step])
    run = diagnosed(tmp_path).items[0]
    assert run.judged.words().startswith("Judged on val_acc (logged as a scalar), loss and ")
    assert (run.verdict, len(run.accuracy.dips)) == (verdict, int(dip))
    if dip:
        assert run.accuracy.dips["onset"][0] in (190, 200)
        assert run.accuracy.dips["depth"][0] == pytest.approx(0.2, abs=0.03)


def test_evaluations_come_before_what_was_logged(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a", "loop")
    writer.add_scalars(STEPS, "loss", np.linspace(2, 1, len(STEPS)))
    writer.add_scalars(EVERY, "val_acc", rising(dip=True))
    writer.add_eval(0, "test_acc", 0.3, 0.1, 0, np.nan, np.arange(100) < 30)
    writer.flush()
    run = diagnosed(tmp_path).items[0]
    assert run.evals()["metric"].unique().tolist() == ["test_acc"]
    assert "logged" not in run.judged.words()


def test_what_convert_decided_stays(tmp_path: Path) -> None:
    lines = ["step,loss,val_acc"] + [
        f"{step},{2 - step / 400},{value}" for step, value in zip(EVERY, rising(True), strict=True)
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    convert(tmp_path / "log.csv", tmp_path / "run", ["val_acc=scalar:val_acc"])
    assert RunDir(tmp_path / "run").read_meta()["converted"]
    assert len(stabkit.open_run(tmp_path / "run").evals()) == 0


ALL = (STEPS, np.zeros(len(STEPS)))
SOME = (EVERY, rising(False, 1.0))


def names(frame: pd.DataFrame) -> list[str]:
    return sorted(frame["metric"].unique())


def test_the_name_decides_and_how_often_it_was_logged() -> None:
    assert names(logged_accuracies(scalars(loss=ALL, val_acc=SOME, test_top1=SOME))) == [
        "test_top1", "val_acc",
    ]  # fmt: skip
    assert names(logged_accuracies(scalars(loss=ALL, accuracy=SOME))) == ["accuracy"]
    assert names(logged_accuracies(scalars(loss=ALL, accuracy=SOME, val_accuracy=SOME))) == [
        "val_accuracy"
    ]
    every_step = (STEPS, np.full(len(STEPS), 0.5))
    for name in ("train_acc", "batch_acc", "val_loss", "grad_norm", "knn_seconds"):
        assert names(logged_accuracies(scalars(loss=ALL, **{name: SOME}))) == [], name
    assert names(logged_accuracies(scalars(loss=ALL, val_acc=every_step))) == []
    assert names(logged_accuracies(scalars(loss=ALL)[:0])) == []


def test_percent_is_told_by_a_value_above_one_and_no_share_is_made_up() -> None:
    percent = logged_accuracies(scalars(loss=ALL, val_acc=(EVERY, rising(False))))
    share = logged_accuracies(scalars(loss=ALL, val_acc=SOME))
    assert percent["value"].to_numpy() == pytest.approx(share["value"].to_numpy())
    assert share["value"].to_numpy() == pytest.approx(rising(False, 1.0))
    for wrong in (-0.1, 100.5, np.inf):
        values = np.append(SOME[1][:-1], wrong)
        assert names(logged_accuracies(scalars(loss=ALL, val_acc=(EVERY, values)))) == []
