"""A dip online: suspected, then confirmed for good or withdrawn; at the end as in one search."""

from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stabkit.detect import find_dips, online_dips
from stabkit.detect.dip_search import dip_bar
from stabkit.detect.online_dips import DipNews, OnlineDips, last_two_are_low
from stabkit.detect.simulate import Planted, SimulatedCurve, simulate_curve

DIPS = (Planted(25, 5, 0.15), Planted(50, 8, 0.2, "v"))


def fed(dips: OnlineDips, curve: SimulatedCurve) -> list[DipNews]:
    return [
        news
        for step, bits in zip(curve.step, curve.correct, strict=True)
        for news in dips.add(int(step), bits)
    ]


def index(curve: SimulatedCurve, step: int) -> int:
    return int(np.searchsorted(curve.step, step))


def scripted(
    monkeypatch: pytest.MonkeyPatch, found: dict[int, list[tuple[int, float]]], z: float = 99.0
) -> None:
    """Let the search find dips (onset, recovery) by the number of evaluations; look at each."""

    def find(steps: Any, *_: Any, **__: Any) -> pd.DataFrame:
        rows = found.get(len(steps), [])
        dips = pd.DataFrame(rows, columns=["onset", "recovery"])
        dips = dips.assign(trough=0, depth=0.1, z=z, fall=0.0, p_value=0.0)
        dips.attrs = {"ar": 0.0}
        return dips

    monkeypatch.setattr(online_dips, "find_dips", find)
    monkeypatch.setattr(online_dips, "LOOK_EVERY", 1)


def states(dips: OnlineDips, evals: int) -> list[tuple[int, str]]:
    """Feed evaluations 0, 1, 2, …; return the changes of state, each with its evaluation."""
    return [
        (news.at, news.state) for i in range(evals) for news in dips.add(i, np.ones(4, dtype=bool))
    ]


def test_a_dip_that_every_search_finds_again_is_confirmed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # suspected after evaluation 21, with 22 evaluations; its recovery is seen later
    found = {n: [(19, np.nan if n < 26 else 24)] for n in range(22, 60)}
    scripted(monkeypatch, found)
    dips = OnlineDips(0.1)
    confirmed = 21 + online_dips.CONFIRMED_AFTER
    assert states(dips, 60) == [(21, "suspected"), (confirmed, "confirmed")]
    assert dips.confirmed == 1
    assert dips.finish() == [], "nothing is open"


def test_a_dip_that_hardly_passes_the_bar_is_decided_when_the_run_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, {n: [(19, 24)] for n in range(22, 61)}, z=1.2 * dip_bar(60, 0.0, True))
    dips = OnlineDips(0.1)
    assert states(dips, 60) == [(21, "suspected")]
    assert ([news.state for news in dips.finish()], dips.confirmed) == (["confirmed"], 1)


def test_a_dip_that_searches_do_not_find_again_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience = online_dips.PATIENCE
    scripted(monkeypatch, {n: [(19, np.nan)] for n in (22, 23, 22 + patience, 40)})
    dips = OnlineDips(0.1)
    assert states(dips, 60) == [
        (21, "suspected"), (21 + 2 * patience, "withdrawn"),
        (39, "suspected"), (39 + patience, "withdrawn"),
    ]  # fmt: skip
    assert dips.confirmed == 0


@pytest.mark.lengthy
def test_what_is_confirmed_is_never_retracted(monkeypatch: pytest.MonkeyPatch) -> None:
    last = 22 + online_dips.CONFIRMED_AFTER
    scripted(monkeypatch, {n: [(19, 24)] for n in range(22, last + 1)})  # none after it
    dips = OnlineDips(0.1)
    assert [state for _, state in states(dips, 80)] == ["suspected", "confirmed"]
    assert (dips.finish(), dips.confirmed) == ([], 1)


@pytest.mark.lengthy
def test_two_rows_are_one_dip_only_if_an_evaluation_is_low_in_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # evaluation 24 is outside of both, 25 begins the second
    found = {n: [(19, 24)] + [(24, 27)] * (n >= 28) for n in range(22, 60)}
    scripted(monkeypatch, found)
    dips = OnlineDips(0.1)
    assert [state for _, state in states(dips, 60)] == ["suspected", "suspected"] + [
        "confirmed"
    ] * 2
    assert dips.confirmed == 2


def test_the_end_of_a_run_decides_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {n: [(10, 14)] for n in range(38, 41)} | {39: [(10, 14), (30, np.nan)]}
    scripted(monkeypatch, found)
    dips = OnlineDips(0.1)
    assert states(dips, 39) == [(37, "suspected"), (38, "suspected")]
    found[39] = [(10, 14), (20, 22)]  # what the last search says
    last = [(news.state, news.dip["onset"]) for news in dips.finish()]
    assert sorted(last) == [
        ("confirmed", 10), ("confirmed", 20), ("suspected", 20), ("withdrawn", 30),
    ]  # fmt: skip
    assert dips.confirmed == 2


@pytest.mark.lengthy
@pytest.mark.parametrize("seed", range(4))
def test_the_count_at_the_end_is_that_of_one_search(seed: int) -> None:
    curve = simulate_curve(np.random.default_rng(seed), evals=90, n=400, planted=DIPS, ar=0.3)
    dips = OnlineDips(0.1)
    news = fed(dips, curve) + dips.finish()
    found = find_dips(curve.step, curve.accuracy, correct=curve.correct, chance=0.1)
    assert len(found) == 2
    confirmed = [one for one in news if one.state == "confirmed"]
    assert dips.confirmed == len(confirmed) == len(found)
    every = int(curve.step[1])
    onsets = [one.dip["onset"] for one in confirmed]
    assert onsets == pytest.approx(found["onset"].tolist(), abs=2 * every)
    first = next(one for one in news if one.state == "suspected")
    assert index(curve, first.at) <= 25 + 2, "at the second low evaluation, or one later"
    for planted, one in zip(DIPS, confirmed, strict=True):
        assert index(curve, one.at) <= planted.at + 3 + online_dips.CONFIRMED_AFTER


@pytest.mark.lengthy
@pytest.mark.parametrize("seed", range(3))
def test_a_search_of_the_tail_finds_what_one_of_the_whole_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_dips, "TAIL", 64)
    planted = tuple(Planted(at, 4, 0.12) for at in (30, 75, 120, 165, 210))
    curve = simulate_curve(np.random.default_rng(seed), evals=240, n=400, planted=planted)
    dips = OnlineDips(0.1)
    onsets = [one.dip["onset"] for one in fed(dips, curve) if one.state == "confirmed"]
    found = find_dips(curve.step, curve.accuracy, correct=curve.correct, chance=0.1)
    assert onsets == found["onset"].tolist()
    assert len(onsets) == 5


@pytest.mark.lengthy
def test_a_search_is_rare_and_sees_the_tail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def find(steps: Any, *args: Any, **options: Any) -> pd.DataFrame:
        seen.append(len(steps))
        return find_dips(steps, *args, **options)

    monkeypatch.setattr(online_dips, "find_dips", find)
    monkeypatch.setattr(online_dips, "TAIL", 50)
    curve = simulate_curve(np.random.default_rng(1), evals=600, n=100, ar=0.5)
    fed(OnlineDips(0.1), curve)
    assert max(seen) == 50
    assert 600 / online_dips.LOOK_EVERY <= len(seen) < 0.25 * 600


def test_two_low_evaluations_are_worth_a_search_also_on_a_rise() -> None:
    rng = np.random.default_rng(0)
    flat = 0.5 + 0.005 * rng.normal(size=42)
    rising = np.linspace(0.1, 0.6, 42) + 0.005 * rng.normal(size=42)
    flat[-2:], rising[-2:] = 0.5, (0.588, 0.6)
    for curve in (flat, rising):
        assert not last_two_are_low(curve)
        assert not last_two_are_low(curve - 0.1 * (np.arange(42) == 41)), "one is an outlier"
        assert last_two_are_low(curve - 0.1 * (np.arange(42) >= 40))
    assert not last_two_are_low(np.zeros(4)), "there is no level yet"


@pytest.mark.lengthy
def test_evaluations_that_come_twice_count_once() -> None:
    curve = simulate_curve(np.random.default_rng(0), evals=60, n=300, planted=DIPS[:1])
    once, twice = OnlineDips(0.1), OnlineDips(0.1)
    news = []
    for i, step in enumerate(curve.step.tolist()):
        news += twice.add(step, curve.correct[i])
        assert twice.add(int(curve.step[max(0, i - 3)]), curve.correct[0]) == []
    assert [(one.state, one.at) for one in news] == [
        (one.state, one.at) for one in fed(once, curve)
    ]
    assert [key for key, _ in groupby(one.state for one in news)] == ["suspected", "confirmed"]


def test_samples_that_change_midway_are_searched_by_their_counts() -> None:
    dips, news = OnlineDips(0.1), []
    for i in range(40):
        size = 1000 + 50 * (i > 10)
        news += dips.add(i, np.arange(size) < size * (0.3 if 20 <= i < 25 else 0.6))
    assert [(one.state, one.dip["onset"]) for one in news] == [("suspected", 19), ("confirmed", 19)]


def test_a_fall_for_good_in_a_short_run_is_confirmed_when_it_is_over() -> None:
    share = np.where(np.arange(10) < 5, 0.85, 0.5)
    bits = np.random.default_rng(0).random((10, 1000)) < share[:, None]
    dips = OnlineDips(0.1)
    news = [one for step, row in enumerate(bits) for one in dips.add(step, row)]
    assert {one.state for one in news} == {"suspected"}
    assert [one.state for one in dips.finish()] == ["confirmed"]
    assert len(find_dips(np.arange(10), bits.mean(axis=1), correct=bits)) == dips.confirmed == 1
