import numpy as np
import pytest

from stabkit.detect.growth import find_growth
from stabkit.detect.simulate.layers import layers
from stabkit.detect.simulate.norms import NORMS

STEPS = np.arange(600)
LOG = np.random.default_rng(0).normal(size=(600, 6))


def grown(logs: np.ndarray, steps: np.ndarray = STEPS) -> list[list[dict[str, float]]]:
    rows = find_growth([(steps, np.exp(column)) for column in logs.T])
    return [found.to_dict("records") for found in rows]


def ramp(times: float, begin: int, end: int) -> np.ndarray:
    return np.log(times) * np.clip((STEPS - begin) / (end - begin), 0, 1)[:, None]


@pytest.mark.parametrize("times", [30, 100, 1000])
def test_a_slow_growth_is_dated_at_half_of_its_rise(times: float) -> None:
    for (found,) in grown(ramp(times, 200, 500) + 0.3 * LOG):
        assert found["onset"] == pytest.approx(350, abs=20)
        assert found["end"] == 599
        assert found["ratio"] == pytest.approx(times, rel=0.3)


def test_a_growth_that_comes_back_ends_there() -> None:
    hump = ramp(100, 200, 300) - ramp(100, 400, 500)
    for (found,) in grown(hump + 0.3 * LOG):
        assert found["onset"] == pytest.approx(250, abs=20)
        assert found["end"] == pytest.approx(450, abs=20)


def test_layers_that_grow_less_have_no_row() -> None:
    logs = ramp(100, 200, 500) * [1, 1, 1, 1, 0.2, 0] + 0.1 * LOG
    assert [len(rows) for rows in grown(logs)] == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("times", [1.0, 10.0])
def test_what_healthy_norms_grow_by_is_no_growth(times: float) -> None:
    assert not any(grown(ramp(times, 100, 600) + 0.5 * LOG))


def test_layers_behind_a_head_of_zeros_begin_near_zero_and_have_not_grown() -> None:
    assert not any(grown(ramp(1e6, 0, 50) + 0.3 * LOG))


@pytest.mark.parametrize("name", NORMS)
def test_no_healthy_law_grows(name: str) -> None:
    for seed in range(5):
        drawn = layers(seed, name=name)
        assert not any(grown(np.log(drawn.norms), np.arange(len(drawn.norms))))


def test_few_values_or_none_have_no_growth() -> None:
    assert grown(np.linspace(0, 9, 59)[:, None], STEPS[:59]) == [[]]
    assert find_growth([]) == []
