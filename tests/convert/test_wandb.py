"""Written by hand from W&B's documented layout: its own writer needs an account or its service."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import stabkit
from stabkit.analyze.diagnoses import diagnose
from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted

CHART = """"Step","big - val/knn","big - val/knn__MIN","big - val/knn__MAX","a/b - c - val/knn"
"0","0.1","0.1","0.1",""
"5","0.2","0.15","0.25","0.3"
"10","NaN","NaN","NaN","0.4"
"""


def test_a_chart_holds_a_run_a_column(tmp_path: Path, out: Path) -> None:
    (tmp_path / "chart.csv").write_text(CHART)
    first, second = convert(tmp_path / "chart.csv", out)
    assert (first.format, first.folder, second.folder) == ("wandb", out / "big", out / "a_b_-_c")
    assert first.plan.left_out == dict.fromkeys(
        ["val/knn__MIN", "val/knn__MAX"], "the range of what was averaged"
    )
    assert "1 column differ from their __MIN and __MAX" in first.plan.notes[0]
    evals = [run.evals("knn_heldout")[["step", "value"]] for run in stabkit.load(out)]
    np.testing.assert_array_equal(evals[0], [[5, 0.3], [10, 0.4]])
    np.testing.assert_array_equal(evals[1], [[0, 0.1], [5, 0.2], [10, math.nan]])


def test_a_chart_over_time_has_the_steps_of_each_run_beside(tmp_path: Path, out: Path) -> None:
    (tmp_path / "c.csv").write_text(
        "Relative Time,r - _step,r - loss,r - loss__MIN\n.5,3,1,1\n1,4,2,2\n"
    )
    assert converted(tmp_path / "c.csv", out).scalar("loss").to_dict() == {3: 1.0, 4: 2.0}
    (tmp_path / "c.csv").write_text("Relative Time,r - loss,r - loss__MIN\n.5,1,1\n")
    with pytest.raises(ConvertError, match="no column of steps for run r"):
        convert(tmp_path / "c.csv", out.with_name("again"))


def test_the_only_curve_of_a_chart_may_go_blank(tmp_path: Path) -> None:
    rows = [f'"{i}","{2.5 / (i + 5) + i % 3 / 100 if i < 300 else ""}"' for i in range(400)]
    (tmp_path / "c.csv").write_text("\n".join(['"Step","r - loss"', *rows]))
    of_time = [f"{i}.5,{row}".replace('"', "") for i, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["Relative Time,r - _step,r - loss", *of_time]))
    for name in ("c", "t"):
        convert(tmp_path / f"{name}.csv", tmp_path / name)
        (found,) = diagnose(stabkit.load(tmp_path / name))
        assert (found.verdict, found.gaps()) == ("unknown", ["loss blank in steps 300 to 399"])


def test_a_curve_that_ends_before_others_is_noted(tmp_path: Path, out: Path) -> None:
    rows = [f"{i},{i / 9},{i / 8 if i < 87 else ''},{i / 7 if i < 88 else ''}" for i in range(90)]
    (tmp_path / "c.csv").write_text("\n".join(["Step,a - loss,b - loss,c - loss", *rows]))
    shorter = (
        "blank behind step 86, where others go on to 89: the run ended there, or its values were "
        "NaN; its history tells which"
    )
    for row_step in (False, True):
        made = convert(tmp_path / "c.csv", out, row_step=row_step, force=row_step)
        plans = [one.plan for one in made]
        assert [shorter in plan.notes for plan in plans] == [False, True, False]
        assert [plan.silent for plan in plans] == [None] * 3


@pytest.mark.parametrize("form", ["lines", "array", "csv"])
def test_a_history_of_any_form(tmp_path: Path, out: Path, form: str) -> None:
    rows = [
        {"_step": 0, "_runtime": 1.5, "_timestamp": 2.5, "train": {"loss": 1.0}, "val/knn": 0.5},
        {"_step": 1, "_runtime": 3, "_timestamp": 4, "train": {"loss": "NaN"}},
        {"_step": 2, "_runtime": 5, "_timestamp": 6, "train": {"loss": "Infinity"}},
    ]
    histogram = {"_type": "histogram", "values": [1], "bins": [0, 1]}
    text = "\n".join(json.dumps(row | {"gradients/fc": histogram}) for row in rows)
    if form == "array":
        text = json.dumps([row | {"gradients/fc": histogram} for row in rows])
    elif form == "csv":
        text = "_step,_runtime,_timestamp,train.loss,val/knn,gradients/fc\n"
        text += "0,1,2,1.0,0.5,\"{'_type': 'histogram'}\"\n1,3,4,NaN,,\n2,5,6,Infinity,,\n"
    (tmp_path / "history").write_text(text)
    run = converted(tmp_path / "history", out)
    np.testing.assert_array_equal(run.scalar("train.loss"), [1, math.nan, math.inf])
    assert run.scalars()["name"].unique().tolist() == ["train.loss"]
    assert run.evals("knn_heldout")["value"].tolist() == [0.5]
    left_out = run.dir.read_meta()["converted"]["left_out"]
    assert {k: v.split(",")[0] for k, v in left_out.items()} == {
        "_runtime": "the clock", "_timestamp": "the clock", "gradients/fc": "not numbers",
    }  # fmt: skip
    assert [event["step"] for event in run.dir.read_entries()] == [1]
