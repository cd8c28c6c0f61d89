from pathlib import Path

import numpy as np
import pytest

from stabkit.detect import find_dips, online_dips
from stabkit.rundir import RunDir
from stabkit.store.writer import Writer
from stabkit.train.alerts import Alerts

N = 500


def evaluations() -> np.ndarray:
    """[30, N] correctness on a rising curve that falls by 20 points at evaluations 10 to 13."""
    accuracy = np.linspace(0.4, 0.6, 30)
    accuracy[10:14] -= 0.2
    threshold = np.random.default_rng(0).random(N)  # a sample is right once accuracy passes it
    return threshold < accuracy[:, None]


def test_a_dip_is_counted_when_it_is_confirmed_and_not_before(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    alerts = Alerts(rundir, chance=0.1)
    counts = []
    for step, correct in enumerate(evaluations()):
        alerts.add(step, correct)
        counts.append(alerts.counts.get("dip", 0))
    assert counts[:19] == [0] * 19
    assert counts[20:] == [1] * 10, "suspected at its second low evaluation, certain eight later"
    told = [(event["kind"], event["step"], event["onset"]) for event in rundir.read_entries()]
    assert told == [("suspected", 11, 9), ("confirmed", counts.index(1), 9)]
    bits = evaluations()
    assert len(find_dips(np.arange(30), bits.mean(axis=1), correct=bits)) == 1


def test_the_end_of_a_run_confirms_a_dip_that_it_is_in(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    alerts = Alerts(rundir, chance=0.1)
    for step, correct in enumerate(evaluations()[:14]):
        alerts.add(step, correct)
    assert alerts.counts == {}
    alerts.finish(15)
    assert alerts.counts == {"dip": 1}
    assert [(e["kind"], e["step"]) for e in rundir.read_entries()] == [
        ("suspected", 11),
        ("confirmed", 15),
    ]


def test_a_resumed_run_remembers_what_came_before(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "abcd")
    for step, correct in enumerate(evaluations()[:20]):
        writer.add_eval(step, "knn_heldout", correct.mean(), 0.1, 20, 0.07, correct)
    writer.flush()
    rundir = RunDir(tmp_path)
    rundir.append_entry("nonfinite", 3, layers=["norm"])
    alerts = Alerts(rundir, chance=0.1)
    assert alerts.counts == {"dip": 1, "nonfinite": 1}
    alerts.add(20, evaluations()[20])
    assert alerts.counts == {"dip": 1, "nonfinite": 1}


def test_each_event_is_acted_upon_once(tmp_path: Path) -> None:
    acts: list[tuple[str, int]] = []
    rundir = RunDir(tmp_path)
    rundir.append_entry("nonfinite", 3, layers=["norm"])
    alerts = Alerts(rundir, 0.1, lambda kind, onset: acts.append((kind, onset)))
    for step, correct in enumerate(evaluations()):
        if step == 20:
            rundir.append_entry("nonfinite", 18, layers=["norm"])
        alerts.add(step, correct)
    (kind, onset), *later = acts
    assert kind == "dip"
    assert 8 <= onset <= 10
    assert later == [("nonfinite", 18)], "what an earlier process found was acted upon there"


def test_an_error_of_the_search_is_told_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise IndexError("index -1 is out of bounds")

    monkeypatch.setattr(online_dips, "find_dips", fails)
    rundir = RunDir(tmp_path)
    alerts = Alerts(rundir, chance=0.1)
    for step, correct in enumerate(evaluations()):
        alerts.add(step, correct)
    alerts.finish(30)
    (entry,) = rundir.read_entries()
    assert (entry["kind"], entry["name"]) == ("monitor_failed", "dips")
    assert entry["reason"] == "IndexError: index -1 is out of bounds"
    assert alerts.counts == {}


def test_a_run_that_never_rose_above_chance_ends_well(tmp_path: Path) -> None:
    """Its end crashed, however often it was resumed."""
    rundir = RunDir(tmp_path)
    alerts = Alerts(rundir, chance=0.1)
    for step in range(9):
        alerts.add(step, np.arange(20) < step % 2)
    alerts.finish(9)
    assert rundir.read_entries() == []
