import numpy as np
import pandas as pd
import pytest

from stabkit.detect import find_spikes
from stabkit.detect.joint_spikes import FEWEST, SHARE, TOGETHER, find_layer_spikes, steps_shared
from stabkit.detect.level_filters import rolling_median
from stabkit.detect.simulate import simulate_norms

STEPS = np.arange(500)


def brute_force(raised: list[set[int]]) -> list[int]:
    """Return the steps that lie in some stretch in which enough layers are raised."""
    shared = set()
    for end in range(200):
        stretch = set(range(end - TOGETHER + 1, end + 1))
        if sum(not stretch.isdisjoint(own) for own in raised) >= SHARE * len(raised):
            shared |= stretch & set.union(*raised)
    return sorted(shared) if len(raised) >= FEWEST else []


@pytest.mark.parametrize("seed", range(20))
def test_shared_steps_agree_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raised = [set(rng.integers(0, 100, 8).tolist()) for _ in range(int(rng.integers(2, 9)))]
    found = steps_shared([np.array(sorted(own)) for own in raised])
    assert found.tolist() == brute_force(raised)


def burst(seed: int, height: float, layers: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return layers that rise by `height` deviations within five steps, at steps 300 to 304."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(layers):
        values = simulate_norms(rng, sigma=0.1, steps=500)
        values[300 + rng.integers(0, TOGETHER)] = np.exp(0.1 * height)
        found.append((STEPS, values))
    return found


def test_a_burst_that_no_layer_shows_alone_is_found_in_all_that_share_it() -> None:
    alone = shared = bursts = 0
    for seed in range(20):
        layers = burst(seed, 5.4)
        found = find_layer_spikes(layers)
        here = [rows[rows["onset"].between(300, 304)] for rows in found]
        bursts += sum(map(len, here)) >= 4
        shared += sum(map(len, here))
        alone += sum(len(find_spikes(*layer)) for layer in layers)
    assert bursts >= 12
    assert shared > 2 * alone


def test_layers_that_share_nothing_have_the_spikes_of_find_spikes() -> None:
    layers = [(STEPS, simulate_norms(np.random.default_rng(s), sigma=0.3)[:500]) for s in range(6)]
    for i, (_, values) in enumerate(layers):
        values[100 + 40 * i] *= 30
    for rows, layer in zip(find_layer_spikes(layers), layers, strict=True):
        assert len(rows) == 1
        pd.testing.assert_frame_equal(rows, find_spikes(*layer))


def test_layers_without_values_do_not_count() -> None:
    empty = (STEPS[:0], np.zeros(0))
    found = find_layer_spikes([*burst(1, 12.0, 4), *[empty] * 20])
    assert [len(rows) for rows in found] == [1] * 4 + [0] * 20


@pytest.mark.parametrize("since", [0, 5, 12, 60])
@pytest.mark.parametrize("window", [2, 7, 30])
def test_the_rolling_median_is_that_of_the_values_before(since: int, window: int) -> None:
    values = np.random.default_rng(0).integers(-5, 6, 60) / 4  # ties are where a bisection errs
    if since == 0:
        values, since = np.concatenate([[0.5], values]), 1
    medians = rolling_median(values, window, since)
    expected = [np.median(values[max(0, i - window) : i]) for i in range(since, len(values))]
    np.testing.assert_array_equal(medians, expected)
