"""Several processes give what one gives, in its order, warnings and errors too."""

import os
import warnings
from pathlib import Path

import pytest

import stabkit
from stabkit.analyze import diagnoses, workers
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.summary import describe, run_table
from stabkit.analyze.workers import each
from stabkit.rundir import LeftOutWarning
from tests.analyze.conftest import plant_run
from tests.analyze.odd import warn_of_odd

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("processes", [1, 2])
def test_results_and_warnings_come_in_order_until_one_fails(processes: int) -> None:
    items = [*(n for n in range(60) if n != 13), 13]
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="thirteen"):
            results.extend(each(warn_of_odd, items, processes))
    del items[-1]
    assert [number for number, _ in results] == items
    assert (os.getpid() in {pid for _, pid in results}) == (processes == 1)
    expected = [f"item {n}: left out, odd" for n in items if n % 2]
    told = [str(w.message) for w in caught if "item 13" not in str(w.message)]
    assert told == expected
    assert {w.category for w in caught} == {LeftOutWarning}


@pytest.mark.filterwarnings("ignore::stabkit.rundir.LeftOutWarning")
def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(OSError, match="was killed; is there too little memory"):
        list(each(warn_of_odd, [0] * 50 + [666], 2))


def test_the_table_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        plant_run(tmp_path / f"{seed}", seed=seed, dip=0.08 * (seed == 1), spike=seed == 2)
    monkeypatch.setattr(diagnoses, "WORTH_IT", 2)
    monkeypatch.setattr(workers, "WORTH_IT", 2)
    runs = stabkit.load(tmp_path)
    several, one = diagnose(runs, 2), diagnose(runs)
    first = several.items[0]
    assert {"_falls", "level"} <= vars(first.accuracy).keys()
    assert "_raised" in vars(first.gradients)
    assert "departures" in vars(first.loss)
    assert "verdict" in vars(first)
    assert run_table(several).equals(run_table(one))
    assert describe(several, run_table(several)) == describe(one, run_table(one))
