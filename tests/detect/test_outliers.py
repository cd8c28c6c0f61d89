import numpy as np
import pytest

from stabkit.detect import find_outliers


def curve(seed: int, size: int = 60, noise: float = 0.003) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.75 - 0.65 * np.exp(-np.arange(size) / 8) + noise * rng.normal(size=size)


@pytest.mark.parametrize("at", [5, 30, 58, 59])
def test_a_single_fall_is_told_with_its_depth(at: int) -> None:
    accuracy = curve(0)
    accuracy[at] -= 0.2
    (row,) = find_outliers(np.arange(60), accuracy, np.full(60, 10_000)).itertuples()
    assert row.onset == at
    assert row.depth == pytest.approx(0.2, abs=0.06)
    assert bool(row.last) == (at == 59)


def test_two_evaluations_in_a_row_are_no_outlier() -> None:
    accuracy = curve(0)
    accuracy[30:33] -= 0.2
    assert find_outliers(np.arange(60), accuracy).empty


def test_the_noise_of_few_samples_explains_a_fall() -> None:
    accuracy = curve(0)
    accuracy[30] -= 0.15
    assert len(find_outliers(np.arange(60), accuracy, np.full(60, 10_000))) == 1
    assert find_outliers(np.arange(60), accuracy, np.full(60, 50)).empty


def test_a_noisy_series_hides_a_fall_of_the_size_of_its_noise() -> None:
    accuracy = curve(0, noise=0.05).clip(0, 1)
    accuracy[30] = accuracy[29] - 0.2
    assert find_outliers(np.arange(60), accuracy).empty


def test_healthy_series_raise_few_alarms() -> None:
    found = sum(len(find_outliers(np.arange(60), curve(s, noise=0.01))) for s in range(400))
    assert found <= 12  # 24,000 evaluations: 1 in 2,000


def test_short_series_have_none() -> None:
    assert find_outliers(np.arange(7), [0.1, 0.2, 0.3, 0.0, 0.3, 0.3, 0.3]).empty
    assert find_outliers([], []).empty
