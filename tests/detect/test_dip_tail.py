"""Dips that the largest falls of a series make likely, beside dips that they do not."""

import numpy as np
import pytest

from stabkit.detect import find_dips
from stabkit.detect.simulate import healthy
from tests.detect.sequential import rarely

STEPS = np.arange(100)


def skewed(seed: int) -> np.ndarray:
    """Draw noise of one point whose values below are exponential, as far as five points away."""
    return 0.7 + 0.01 * (1 - np.random.default_rng(seed).exponential(size=100))


@pytest.mark.lengthy
def test_noise_that_falls_further_than_it_rises_brings_few_dips() -> None:
    """With a `threshold` of its own, which is the same bar, the search asks for no tail."""
    with_tail = [len(find_dips(STEPS, skewed(seed))) > 0 for seed in range(200)]
    without = [len(find_dips(STEPS, skewed(seed), threshold=5.2)) > 0 for seed in range(200)]
    assert sum(with_tail) <= 4
    assert sum(without) >= 12


@pytest.mark.parametrize("name", ["skewed shocks", "rate drops, skewed shocks", "t3 shocks"])
def test_heavy_tails_are_learned(name: str) -> None:
    curves = (healthy(name, seed, n=500) for seed in range(100))
    assert rarely((len(find_dips(c.step, c.accuracy)) > 0 for c in curves), 0.03, 100)


def test_a_deep_dip_stands_out_of_skewed_noise() -> None:
    found = 0
    for seed in range(20):
        accuracy = skewed(seed)
        accuracy[50:58] -= 0.08
        dips = find_dips(STEPS, accuracy)
        found += bool(((dips["onset"] - 49).abs() <= 1).any())
    assert found >= 18


def test_the_order_of_noise_tells_a_dip_from_falls_that_lie_apart() -> None:
    """The same values, put side by side and spread over the run: only the first are a dip."""
    rng = np.random.default_rng(1)
    noise = 0.7 + 0.005 * rng.normal(size=100)
    together, apart = noise.copy(), noise.copy()
    together[40:48] -= 0.04
    apart[10:90:10] -= 0.04
    assert find_dips(STEPS, together)["onset"].tolist() == [39]
    assert find_dips(STEPS, apart).empty
    # A pair of them is within what falls of that size bring by chance; eight in a row are not.
    apart[51] -= 0.04
    assert find_dips(STEPS, apart).empty
    assert not find_dips(STEPS, apart, threshold=5.2).empty
