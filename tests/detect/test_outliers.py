import numpy as np
import pytest

from stabkit.detect import find_dips, find_outliers
from stabkit.detect.simulate.planted import Planted
from stabkit.detect.simulate.scenarios import healthy


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
    assert find_outliers(np.arange(60), accuracy, 10_000)["onset"].tolist() == [at]


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


@pytest.mark.parametrize(
    ("scale", "n", "message"),
    [
        (100, None, "accuracy must be a fraction in 0..1 or NaN, got 10.* at step 7"),
        (1, -5, "n must be 0 or more"),
        (1, [100, 100], r"n must be 0 or more, or \[60\] such numbers, got \[100, 100\]"),
    ],
)
def test_percent_and_wrong_counts_are_refused(scale: int, n: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_outliers(np.arange(7, 67), curve(0) * scale, n)  # type: ignore[arg-type]


def test_one_low_evaluation_of_a_run_with_answers_is_told_and_healthy_runs_have_none() -> None:
    found, alarms = 0, 0
    for seed in range(20):
        dipped = healthy("real_lr004", seed, (Planted(50, 1, 0.1),))
        onsets = find_outliers(dipped.step, dipped.accuracy, np.full(dipped.step.size, 1000))
        found += int(dipped.step[50]) in onsets["onset"].tolist()
        calm = healthy(("real_lr016", "t3 shocks")[seed % 2], seed)
        alarms += len(find_outliers(calm.step, calm.accuracy, np.full(calm.step.size, 1000)))
    assert found >= 15  # 93 % of runs; with the former bar of 6 none
    assert alarms == 0


def of_fixed_samples(seed: int, samples: int, evals: int) -> np.ndarray:
    """Return the accuracy of one set of samples whose margins wander; it ends near 1."""
    rng = np.random.default_rng(seed)
    margins = np.empty((evals, samples))
    margins[0] = rng.standard_normal(samples)
    for i in range(1, evals):
        margins[i] = 0.6 * margins[i - 1] + 0.8 * rng.standard_normal(samples)
    learned = 3.2 * (1 - np.exp(-np.arange(evals) / (0.1 * evals)))[:, None]
    own = rng.standard_normal(samples) - 1
    return np.asarray((learned + own + 0.35 * margins > 0).mean(axis=1))


@pytest.mark.parametrize("samples", [20, 30, 50])
def test_few_samples_that_all_get_right_in_the_end_are_no_outliers_and_no_dips(
    samples: int,
) -> None:
    """Their number is not given: one of 20 samples is 5 points, and not 17 times the noise."""
    outliers = dips = 0
    for seed in range(20):
        accuracy = np.round(of_fixed_samples(seed, samples, 200), 4)
        outliers += len(find_outliers(np.arange(200), accuracy)) > 0
        dips += len(find_dips(np.arange(200), accuracy)) > 0
    assert outliers <= 1
    assert dips <= 1


def test_a_fall_by_many_of_few_samples_is_told() -> None:
    accuracy = np.round(of_fixed_samples(0, 50, 200), 4)
    accuracy[150] -= 0.3
    assert find_outliers(np.arange(200), accuracy)["onset"].tolist() == [150]
    accuracy[151:156] -= 0.3
    assert find_dips(np.arange(200), accuracy)["onset"].tolist() == [149]
