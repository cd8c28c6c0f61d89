import numpy as np
import pytest

from stabkit.detect import find_dips
from stabkit.detect.learning_curve import learning_curve

T = np.arange(25.0)


@pytest.mark.parametrize("e_fold", [1, 4, 12, 40])
def test_the_curve_follows_a_bend_and_no_dip(e_fold: float) -> None:
    rise = 0.8 - 0.5 * np.exp(-T / e_fold)
    dipped = rise - np.where((T >= 12) & (T < 16), 0.1, 0.0)
    for values in (rise, dipped):
        assert np.abs(learning_curve(values, 100 * T) - rise).mean() < 0.006


def test_its_distance_is_hardly_larger_than_that_of_any_such_curve() -> None:
    values = 0.8 - 0.6 * (T + 1) ** -0.5 + 0.02 * np.random.default_rng(0).normal(size=T.size)

    def distance(curve: np.ndarray) -> float:
        return float(np.abs(values - curve).sum())

    found = distance(learning_curve(values, T))
    rng = np.random.default_rng(1)
    others = [
        distance(a - b * np.exp(-T / c))
        for a, b, c in rng.uniform((0.6, 0.0, 1.0), (1.0, 0.8, 40.0), size=(50_000, 3))
    ]
    assert found < 1.02 * min(others)


@pytest.mark.parametrize("values", [np.full(25, 0.5), 0.3 + 0.02 * T])
def test_a_straight_series_is_its_own_curve(values: np.ndarray) -> None:
    assert np.allclose(learning_curve(values, T), values, atol=1e-3)


@pytest.mark.parametrize("e_fold", [4, 10])
def test_a_dip_of_a_short_series_is_found_although_the_curve_bends(e_fold: int) -> None:
    """The bend was taken for noise, and the dip with it."""
    found = 0
    for seed in range(10):
        noise = 0.006 * np.random.default_rng(seed).normal(size=T.size)
        dip = np.where((T >= 12) & (T < 16), 0.1, 0.0)
        rows = find_dips(100 * np.arange(25), 0.8 - 0.5 * np.exp(-T / e_fold) + noise - dip)
        found += rows["onset"].tolist() == [1100]
    assert found >= 9
