"""Only what says that it does not apply is passed over; a mistake in the code is not."""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest

from stabkit.analyze import findings
from stabkit.analyze.diagnoses import Diagnoses, diagnose
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.plots import PLOTS, catalog
from stabkit.analyze.report import interactive
from stabkit.analyze.report.figures import draw_figures
from stabkit.analyze.report.headline import tell_verdict
from stabkit.analyze.summary import run_table
from stabkit.cli import main
from stabkit.store.reader import load
from tests.analyze.conftest import plant_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, rate in enumerate((0.001, 0.01)):
        plant_run(tmp_path / f"{seed}", f"optim.lr={rate}", seed=seed)
    return tmp_path


def broken(*_: object) -> NoReturn:
    raise ValueError("operands could not be broadcast together")


def _drawn(runs: Diagnoses) -> None:
    draw_figures(runs, tell_verdict(runs, run_table(runs)), runs.items[0].name)


def test_a_mistake_in_a_figure_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.PLOTS, "knn", replace(PLOTS["knn"], table=broken))
    monkeypatch.setattr(interactive, "grad_norms_table", broken)
    runs = diagnose(load(folder))
    with pytest.raises(ValueError, match="broadcast"):
        _drawn(runs)
    with pytest.raises(ValueError, match="broadcast"):
        interactive.charts(runs)
    with pytest.raises(ValueError, match="broadcast"):
        main(["analyze", str(folder), "--plot", "knn"])
    with pytest.raises(ValueError, match="broadcast"):
        main(["report", str(folder)])


def test_a_mistake_in_a_finding_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "lr_sensitivity", broken)
    with pytest.raises(ValueError, match="broadcast"):
        findings.findings(diagnose(load(folder)))


def test_a_figure_that_does_not_apply_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(runs: Diagnoses) -> pd.DataFrame:
        raise DoesNotApplyError(f"{runs.path}: these runs vary nothing")

    for name in PLOTS:
        if name != "loss":
            monkeypatch.setitem(catalog.PLOTS, name, replace(PLOTS[name], table=nothing))
    runs = diagnose(load(folder))
    assert draw_figures(runs, tell_verdict(runs, run_table(runs)), runs.items[0].name) == ([], [])
    assert main(["analyze", str(folder), "--plot", "knn"]) == 1
