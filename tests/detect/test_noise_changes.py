"""Where noise changes at once, against noise whose changes are known."""

import numpy as np

from stabkit.detect.local_noise import UNSURE, flip_variances, local_noise
from stabkit.detect.noise_changes import SHORTEST, one_noise
from stabkit.detect.simulate.curves import draw_curve
from stabkit.detect.simulate.scenarios import HEALTHY


def sizes(seed: int, *stretches: tuple[int, float]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([scale * np.abs(rng.normal(size=size)) for size, scale in stretches])


def test_a_change_is_found_within_some_values_of_where_it_is() -> None:
    errors = []
    for seed in range(50):
        stretches = one_noise(sizes(seed, (70, 1.0), (50, 0.2)))
        assert len(stretches) == 2
        errors.append(stretches[0][1] - 70)
    assert np.median(np.abs(errors)) <= 1
    assert np.max(np.abs(errors)) <= 10


def test_noise_that_does_not_change_is_one_stretch() -> None:
    whole = [one_noise(sizes(seed, (200, 1.0))) == [(0, 200)] for seed in range(200)]
    assert sum(whole) >= 198


def test_stretches_cover_the_series_and_none_is_short() -> None:
    for seed in range(20):
        drawn = sizes(seed, (40, 1.0), (40, 0.05), (60, 2.0), (5, 0.01), (40, 0.3))
        found = one_noise(drawn)
        assert [first for first, _ in found] == [0, *(stop for _, stop in found[:-1])]
        assert found[-1][1] == drawn.size
        assert all(stop - first >= SHORTEST for first, stop in found)
        assert len(found) >= 3


def test_short_series_and_zeros_are_one_stretch() -> None:
    assert one_noise(np.zeros(0)) == [(0, 0)]
    assert one_noise(np.ones(2 * SHORTEST - 1)) == [(0, 2 * SHORTEST - 1)]
    assert one_noise(np.zeros(100)) == [(0, 100)]


def test_the_noise_before_a_drop_is_not_that_of_the_quiet_end() -> None:
    """Just before the drop, windows of 31 evaluations hold half of the quiet end."""
    before, after = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = np.repeat([0.04, 0.004], 60)
        found, _ = local_noise(0.7 + noise * rng.normal(size=120), None)
        before.append(np.median(found[48:58]))
        after.append(np.median(found[62 + UNSURE : 82]))
    assert np.mean(before) > 0.04 * 0.85
    assert np.mean(after) < 0.004 * 1.6


def test_the_noise_just_before_a_drop_is_seldom_taken_for_that_after_it() -> None:
    """It is 10 times as large. A change that is found some values too early made it small."""
    least = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        law = HEALTHY["rate drops, skewed shocks"](rng)
        curve = draw_curve(law, rng)
        drop = int(np.argmax(law.noise < law.noise[0]))
        noise, _ = local_noise(curve.accuracy, flip_variances(curve.correct))
        least.append(noise[drop - 8 : drop].min() / law.noise[0])
    assert np.mean(np.array(least) < 0.5) <= 0.1
