"""Each table of a run is read once in a command, and each detector looks once at a series."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stabkit.analyze import accuracy_events, gradient_events
from stabkit.analyze.plots import PLOTS
from stabkit.cli import main
from stabkit.rundir import TABLES
from stabkit.store import reader
from tests.analyze.conftest import plant_run

RUNS = 3
METRIC = "knn_heldout"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "runs"
    for seed in range(RUNS):
        plant_run(folder / f"seed{seed}", seed=seed, dip=0.08, spike=True)
    return folder


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    real: Callable[..., Any] = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "RUNS"],
        ["analyze", "RUNS", "--metric", METRIC],
        ["analyze", "RUNS/seed0", "RUNS/seed1"],
        ["report", "RUNS"],
        ["report", "RUNS", "--metric", METRIC],
        *(
            pytest.param(["analyze", "RUNS", "--plot", name], marks=pytest.mark.lengthy)
            for name in PLOTS
        ),
    ],
    ids=" ".join,
)
def test_a_command_reads_each_table_once(
    words: list[str], planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counting(monkeypatch, reader, "read_table")
    dips = counting(monkeypatch, accuracy_events, "search_dips")
    spikes = counting(monkeypatch, gradient_events, "find_layer_spikes")
    code = main([word.replace("RUNS", str(planted)) for word in words])
    if "--plot" not in words:
        assert code == 0  # some figures need a contrast of settings, and say so
        assert {args[1] for args in reads} == {*TABLES}
    assert [args for args, count in Counter(map(str, reads)).items() if count > 1] == []
    assert len(dips) <= RUNS
    assert len(spikes) <= RUNS
