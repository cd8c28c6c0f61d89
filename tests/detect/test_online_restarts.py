"""Dips at warm restarts of the learning rate, while a run trains."""

import numpy as np
import pytest

from stabkit.detect.lr_restarts import OnlineRestarts, expected_cycle
from stabkit.detect.online_dips import DipNews, OnlineDips

CYCLE, EVERY, N = 200, 5, 1000
BEGIN = [200, 400, 600]  # the restarts


def fed(accuracy: np.ndarray, restarts: list[int]) -> list[DipNews]:
    rng, dips = np.random.default_rng(0), OnlineDips(0.1)
    dips.restarts = restarts
    news = []
    for i, share in enumerate(accuracy):
        news += dips.add(i * EVERY, rng.random(N) < share)
    return news + dips.finish()


def confirmed(news: list[DipNews]) -> list[tuple[int, int]]:
    return [(int(one.dip["onset"]), one.at) for one in news if one.state == "confirmed"]


def curve(size: int = 800) -> np.ndarray:
    """Return an accuracy that falls 15 points at each restart, and is back in a third of it."""
    at = np.arange(0, size, EVERY)
    return 0.8 - np.where(at < CYCLE, 0.0, 0.15 * np.maximum(1 - 3 * (at % CYCLE) / CYCLE, 0))


def test_falls_at_restarts_are_confirmed_only_if_no_restart_is_known() -> None:
    assert len(confirmed(fed(curve(), []))) == len(BEGIN)
    assert confirmed(fed(curve(), BEGIN)) == []
    assert confirmed(fed(curve(630), BEGIN)) == [], "nor if the run ends within a cycle"


@pytest.mark.parametrize("first", [300, 520])
def test_a_dip_between_restarts_is_told_when_it_would_be_without_them(first: int) -> None:
    accuracy, at = curve(), np.arange(0, 800, EVERY)
    accuracy[(at >= first) & (at < first + 40)] -= 0.25
    alone = [one for one in confirmed(fed(accuracy, [])) if abs(one[0] - first) < 20]
    assert len(alone) == 1
    assert confirmed(fed(accuracy, BEGIN)) == alone


@pytest.mark.parametrize(("restart", "told"), [(400, (600, 700)), (600, (795, 795))])
def test_a_fall_at_a_restart_that_stays_is_told_when_the_cycle_is_over(
    restart: int, told: tuple[int, int]
) -> None:
    accuracy, at = curve(), np.arange(0, 800, EVERY)
    accuracy[at >= restart] = 0.2
    ((onset, when),) = confirmed(fed(accuracy, BEGIN))
    assert abs(onset - restart) <= EVERY
    assert told[0] <= when <= told[1]


@pytest.mark.parametrize("seed", [1, 8, 13, 15])
def test_an_onset_dated_too_early_is_still_at_its_restart(seed: int) -> None:
    """Each of these seeds dates the onset at 386 or 391, before the restart at 400."""
    rng, dips = np.random.default_rng(seed), OnlineDips(0.25)
    news = []
    for step in range(0, 700, EVERY):
        dips.restarts = [400] if step >= 400 else []
        lost = 0.12 * max(0.0, 1 - (step - 400) / 150) if step >= 400 else 0.0
        news += dips.add(step + 1, rng.random(2000) < 0.75 - lost)
    assert confirmed(news) == []


@pytest.mark.parametrize(
    ("begin", "steps"),
    [
        ([], 0), ([50], 0), ([50, 150], 100), ([100, 200, 300], 100), ([50, 150, 350], 400),
        ([0, 50, 1050], 1000), ([0, 200, 300], 100),
    ],
)  # fmt: skip
def test_a_cycle_grows_as_the_ones_before(begin: list[int], steps: int) -> None:
    assert expected_cycle(begin) == steps


def test_a_rate_that_comes_twice_is_one_restart() -> None:
    found = OnlineRestarts()
    for step, rate in enumerate([0.001, 0.1, 0.05, 0.01, 0.1, 0.05, 0.2, 0.01]):
        found.add(step, rate)
        found.add(step, rate)
    assert found.steps == [4], "a rate that was never used is no restart"
