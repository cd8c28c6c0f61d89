import numpy as np
import pytest

from stabkit.detect import find_collapse, find_fall_to_chance, find_stuck_loss

STEPS = np.arange(0, 200, 5)


def test_a_planted_collapse_is_found_where_it_is() -> None:
    spread = np.full(40, 0.1)
    spread[12:20] = 0.02
    spread[15] = 0.01
    found = find_collapse(STEPS, spread)
    assert found.to_dict("records") == [{"onset": 60, "end": 95, "start": 0.1, "level": 0.01}]


@pytest.mark.parametrize(
    "spread",
    [
        np.full(40, 0.1),
        np.linspace(0.1, 0.026, 40),  # narrows, but never to a quarter
        np.where(np.arange(40) % 10 < 2, 0.01, 0.1),  # two measurements in a row, at most
        np.full(40, np.nan),
        np.zeros(40),
        np.zeros(0),
    ],
)
def test_what_is_no_collapse(spread: np.ndarray) -> None:
    assert find_collapse(STEPS[: len(spread)], spread).empty


def test_values_that_are_not_finite_end_a_stretch_and_never_begin_one() -> None:
    spread = np.array([np.nan, 1.0, 0.1, 0.1, 0.1, np.nan, 0.1, 0.1, np.nan])
    assert find_collapse(np.arange(9), spread)[["onset", "end"]].to_numpy().tolist() == [[2, 4]]


def test_a_loss_pinned_at_chance_or_at_nothing_is_found_with_noise_on_it() -> None:
    rng = np.random.default_rng(0)
    learned = np.linspace(1.02, 0.8, 80)
    for level in (1.0, 0.01):
        stuck = np.concatenate([learned, np.full(120, level)]) + 0.005 * rng.normal(size=200)
        found = find_stuck_loss(np.arange(200), stuck).to_dict("records")
        assert len(found) == 1
        assert abs(found[0]["onset"] - 80) <= 4
        assert found[0]["end"] == 199
        assert found[0]["level"] == pytest.approx(level, abs=0.01)


def test_a_loss_that_falls_or_only_begins_at_chance_is_none() -> None:
    steps = np.arange(200)
    falling = np.linspace(1.03, 0.7, 200)
    late = np.where(steps < 120, 0.8, 1.0)  # back at chance, for less than half of the run
    for values in (falling, late, np.full(40, 1.0)):
        assert find_stuck_loss(steps[: len(values)], values).empty


def test_an_accuracy_that_falls_to_chance_for_good_is_dated_where_it_arrives() -> None:
    accuracy = np.r_[np.linspace(0.1, 0.6, 20), 0.4, 0.2, np.full(18, 0.11)]
    found = find_fall_to_chance(STEPS, accuracy, 0.1).to_dict("records")
    assert [(row["onset"], row["end"], row["level"]) for row in found] == [(110, 195, 0.11)]
    assert found[0]["start"] == pytest.approx(accuracy[18])  # the median of the three highest


@pytest.mark.parametrize(
    "accuracy",
    [
        np.linspace(0.1, 0.6, 40),
        np.r_[np.linspace(0.1, 0.6, 20), np.full(20, 0.17)],  # a seventh of its gain is left
        np.r_[np.linspace(0.1, 0.6, 20), np.full(19, 0.1), 0.5],  # it came back
        np.r_[np.linspace(0.1, 0.6, 38), 0.1, 0.1],  # two evaluations
        np.r_[np.linspace(0.1, 0.18, 20), np.full(20, 0.1)],  # it had gained little
        np.r_[np.full(10, 0.1), 0.6, np.full(29, 0.1)],  # a single evaluation stood high
        np.full(40, 0.1),
        np.full(40, np.nan),
        np.zeros(0),
    ],
)
def test_what_is_no_fall_to_chance(accuracy: np.ndarray) -> None:
    assert find_fall_to_chance(STEPS[: len(accuracy)], accuracy, 0.1).empty


def test_a_chance_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="chance must be from 0 to 1, got 10"):
        find_fall_to_chance(STEPS, np.full(40, 0.5), 10)
