"""A command reads each table of a run once, and each detector looks once at a series."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stabkit.analyze import accuracy_events, gradient_events
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


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "RUNS", "--metric", METRIC],
        ["analyze", "RUNS/seed0", "RUNS/seed1"],
        ["analyze", "RUNS", "--plot", "knn"],
        ["report", "RUNS", "--metric", METRIC],
    ],
    ids=" ".join,
)
def test_a_command_reads_each_table_once(
    words: list[str], planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counting(monkeypatch, reader, "read_table")
    dips = counting(monkeypatch, accuracy_events, "search_dips")
    spikes = counting(monkeypatch, gradient_events, "find_layer_spikes")
    assert main([word.replace("RUNS", str(planted)) for word in words]) == 0
    assert {args[1] for args in reads} <= {*TABLES}
    assert reads
    assert [args for args, count in Counter(map(str, reads)).items() if count > 1] == []
    assert len(dips) <= RUNS
    assert len(spikes) <= RUNS
