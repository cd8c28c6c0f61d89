import numpy as np
import pytest

from stabkit.detect import find_departure, find_long_rises
from stabkit.detect.online_departure import LASTS, WIDTH, Departure, OnlineDepartures

SIZE = 1500
STEPS = np.arange(SIZE)


def falling(seed: int, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.3 + 2 * np.exp(-STEPS / 200)) * np.exp(noise * rng.normal(size=SIZE))


def watched(values: np.ndarray, every: int = 50) -> list[Departure]:
    watch = OnlineDepartures()
    parts = range(0, len(values), every)
    steps = STEPS[: len(values)]
    return [one for at in parts for one in watch.add(steps[at:][:every], values[at:][:every])]


def brute(values: np.ndarray) -> list[int]:
    """Return the steps of departures by the rule as it stands, one value after the other."""
    best = first = None
    found, run, told = [], [], False
    for end in range(WIDTH, len(values) + 1):
        level = float(np.median(values[end - WIDTH : end]))
        first = level if first is None else first
        best = level if best is None else min(best, level)
        if level >= 2 * best and level - best >= (first - best) / 4:
            run.append(end - WIDTH)
            if len(run) >= LASTS and not told:
                told = True
                found.append(run[0])
        else:
            run = []
            told = told and level > best * 2**0.25
    return found


@pytest.mark.parametrize("every", [1, 7, 50, 400])
def test_it_follows_the_rule_however_the_values_come(every: int) -> None:
    swings = falling(0) * np.exp(1.5 * np.sin(STEPS / 60) * (STEPS > 300))
    expected = brute(swings)
    assert len(expected) >= 2
    assert [one.step for one in watched(swings, every)] == expected


@pytest.mark.parametrize("lasts", [200, SIZE])
def test_a_loss_that_rises_for_long_is_told_once_and_in_time(lasts: int) -> None:
    climb = 3 * np.clip((STEPS - 800) / 80, 0, 1) * (800 + lasts > STEPS)
    loss = falling(1) * np.exp(climb)
    (found,) = watched(loss)
    assert 790 <= found.step <= 860
    assert watched(loss[: 800 + 80 + WIDTH // 2 + LASTS]) != [], "while the run trains"
    afterwards = find_departure(STEPS, loss) if lasts == SIZE else find_long_rises(STEPS, loss)
    assert len(afterwards) == 1


@pytest.mark.parametrize(
    "change",
    [
        np.ones(SIZE),
        np.where((STEPS > 700) & (STEPS < 740), 10.0, 1.0),  # a spike of 40 values
        np.where(STEPS % 300 == 299, 8.0, 1.0),  # last batches
        np.where(STEPS > 900, 0.5, 1.0),  # a drop of the rate
        1 + 0.8 * (STEPS > 600),  # stays below twice the best
    ],
)
def test_what_healthy_losses_do_is_no_departure(change: np.ndarray) -> None:
    for seed in range(5):
        assert watched(falling(seed, 0.3) * change) == []


def test_a_small_part_of_what_was_gained_is_none() -> None:
    assert watched(0.01 + 2 * np.exp(-STEPS / 100) + 0.2 * (STEPS > 900)) == []


def test_losses_without_a_logarithm_have_none() -> None:
    loss = falling(0) * np.where(STEPS > 900, 20, 1)
    assert len(watched(loss)) == 1
    loss[100] = 0
    assert watched(loss) == []
    loss[100] = np.nan
    assert len(watched(loss)) == 1
