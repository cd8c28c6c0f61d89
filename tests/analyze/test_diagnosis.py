"""A command reads each table of a run once and runs each detector once a series."""

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stabkit.analyze import (
    accuracy_events,
    gradient_events,
    gradient_found,
    loss_events,
    loss_found,
    series_spikes,
)
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.kept_tables import Tables
from stabkit.analyze.report.page import write_report
from stabkit.analyze.summary import describe, run_table
from stabkit.cli import main
from stabkit.detect import drift
from stabkit.store import tables
from stabkit.store.reader import load
from tests.analyze.conftest import LAYERS, diagnosed_run, plant_run

DETECTORS = (
    *("search_dips", "find_drift", "find_outliers", "find_layer_spikes", "find_layer_swells"),
    *("find_spikes", "find_long_rises", "find_departure"),
    *("find_unrest", "find_loss_unrest"),
    *("find_bursts", "layer_onsets"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        plant_run(tmp_path / f"{seed}", seed=seed, dip=0.08 * (seed == 1), spike=seed > 0)
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each table of each run was read, by `run/table`."""
    counts: Counter[str] = Counter()
    read = tables._read_parts

    def counted(folder: Path, *further: Any) -> Any:
        counts[f"{folder.parent.name}/{folder.name}"] += 1
        return read(folder, *further)

    monkeypatch.setattr(tables, "_read_parts", counted)
    return counts


@pytest.fixture
def detections(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each detector was called, by its name."""
    counts: Counter[str] = Counter()

    def counting(name: str, find: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        def counted(*series: Any, **options: Any) -> pd.DataFrame:
            counts[name] += 1
            return find(*series, **options)

        return counted

    callers = (accuracy_events, gradient_events, loss_events, series_spikes, drift)
    callers += (gradient_found, loss_found)
    for name in DETECTORS:
        for module in callers:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return counts


@pytest.mark.lengthy
def test_a_report_reads_each_table_once_and_finds_once(
    folder: Path, tmp_path: Path, reads: Counter[str], detections: Counter[str]
) -> None:
    write_report(diagnose(load(folder)), tmp_path / "report.html", interactive=True)
    # the figure of all signals reads the other columns of the run that it shows, the worst
    assert reads.pop("1/layers") == 2
    expected = {f"{run}/{table}" for run in range(3) for table in ("layers", "scalars", "evals")}
    assert reads == dict.fromkeys(expected - {"1/layers"}, 1)
    once_a_run = dict.fromkeys(DETECTORS, 3)
    # bursts of the layers' spikes, all and those that stand out, of their swells, their growth and
    # of the loss; outliers also of the mean of the seeds; whether a loss left, or ended above its
    # best level
    assert detections == once_a_run | {"find_bursts": 15, "find_outliers": 4, "find_departure": 6}


@pytest.mark.lengthy
def test_a_summary_reads_each_table_once_and_finds_once(
    folder: Path, reads: Counter[str], detections: Counter[str]
) -> None:
    found = diagnose(load(folder))
    assert "1 of 3 runs trained unstably" in describe(found, run_table(found))
    assert set(reads.values()) == {1}
    assert detections["search_dips"] == detections["find_drift"] == 3
    assert detections["find_outliers"] == 4, "one of the mean of the seeds"
    assert detections["find_layer_spikes"] == detections["find_spikes"] == 3


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "RUNS", "--metric", "knn_heldout"],
        ["analyze", "RUNS/0", "RUNS/1"],
        ["analyze", "RUNS", "--plot", "knn"],
        ["report", "RUNS", "--metric", "knn_heldout"],
    ],
    ids=" ".join,
)
def test_a_command_reads_each_table_once(
    words: list[str], folder: Path, reads: Counter[str], detections: Counter[str]
) -> None:
    assert main([word.replace("RUNS", str(folder)) for word in words]) == 0
    if words[0] == "report":  # the figure of all signals reads the other columns of one run
        assert reads.pop("1/layers") == 2
    assert set(reads.values()) == {1}
    assert detections["search_dips"] <= 3
    assert detections["find_layer_spikes"] <= 3


def test_tables_are_kept_up_to_a_budget_and_findings_for_ever(
    folder: Path, reads: Counter[str]
) -> None:
    none_kept = Tables(budget=0)
    runs = [Diagnosis(run, tables=none_kept).examine() for run in load(folder)]
    assert set(reads.values()) == {1}
    assert [len(run.accuracy.dips) for run in runs] == [0, 1, 0]
    assert [len(run.gradients.bursts) for run in runs] == [0, 1, 1]
    assert set(reads.values()) == {1}, "what was found is kept"
    assert len(runs[0].tables.signals(["grad_norm"])) == len(runs[1].tables.signals(["grad_norm"]))
    assert reads["0/layers"] == reads["1/layers"] == 2, "the table itself is not"
    assert len(pickle.dumps(runs[1].found())) < 50_000


def test_a_diagnosis_alone_says_everything_of_its_run(folder: Path) -> None:
    run = diagnosed_run(folder / "1")
    assert run.verdict == "unstable"
    assert len(run.accuracy.dips) == 1
    assert run.accuracy.drifts.empty
    assert run.gradients.bursts["first"].tolist() == ["patch_embed"]
    assert set(run.gradients.spikes["layer"].astype(str)) == {"patch_embed", "blocks.0"}
    assert run.collapses.empty
    assert run.nonfinite == []
    assert run.gaps() == []
    assert run.gradients.layers["layer"].tolist() == LAYERS
    assert run.accuracy.level == pytest.approx(run.evals("knn_heldout")["value"].tail(20).median())
