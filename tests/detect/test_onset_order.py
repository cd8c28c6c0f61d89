import math
from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.detect import onset_order, shallow_first
from stabkit.detect.robust import median_interval
from tests.detect.sequential import rarely

LAYERS = ["patch_embed", "blocks.0", "blocks.1", "head"]


def onsets(*bursts: dict[str, int]) -> pd.DataFrame:
    """Bursts as {layer: onset}, in the columns of `layer_onsets`."""
    rows = [
        {"burst": i, "layer": layer, "depth": LAYERS.index(layer), "onset": onset}
        | {"lag": onset - min(burst.values())}
        for i, burst in enumerate(bursts)
        for layer, onset in burst.items()
    ]
    return pd.DataFrame(rows, columns=["burst", "layer", "depth", "onset", "lag"])


def random_onsets(seed: int, events: int = 12) -> list[dict[str, int]]:
    rng = np.random.default_rng(seed)
    bursts = []
    for _ in range(events):
        layers = rng.permutation(LAYERS)[: rng.integers(1, len(LAYERS) + 1)]
        bursts.append({str(layer): int(rng.integers(50, 56)) for layer in layers})
    return bursts


@pytest.mark.parametrize("seed", range(20))
def test_the_table_counts_what_a_loop_counts(seed: int) -> None:
    bursts = random_onsets(seed)
    table = onset_order(onsets(*bursts)).set_index("layer")
    assert table["depth"].is_monotonic_increasing
    for layer, row in table.iterrows():
        mine = [burst for burst in bursts if layer in burst]
        shared = [burst for burst in mine if len(burst) > 1]
        lags = [burst[str(layer)] - min(burst.values()) for burst in shared]
        assert row["events"] == len(shared)
        assert row["alone"] == len(mine) - len(shared)
        assert row["first"] == lags.count(0)
        assert row["lag"] == pytest.approx(np.median(lags), nan_ok=True)


def test_expected_firsts_are_the_mean_over_all_orders() -> None:
    times = [3, 3, 4]  # two of three layers are first together
    by_hand = np.mean([order[0] == 3 for order in permutations(times)])
    table = onset_order(onsets(dict(zip(LAYERS, times, strict=False))))
    assert table["expected"].tolist() == pytest.approx([by_hand] * 3)
    assert table["first"].tolist() == [1, 1, 0]


def test_bursts_of_several_runs_are_told_apart() -> None:
    one, two = onsets({"patch_embed": 1, "head": 4}), onsets({"patch_embed": 9, "head": 7})
    both = pd.concat([one.assign(run="a"), two.assign(run="b")])
    assert onset_order(both)["first"].tolist() == [1, 1]
    test = shallow_first(both)
    assert (test.events, test.before, test.after) == (2, 1, 1)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    """Check a skewed and a coarse law (with ties), down to the smallest size with an interval."""
    rng = np.random.default_rng(0)
    for draw, median in ((rng.exponential, math.log(2)), (lambda size: rng.poisson(2, size), 2)):
        for size in (6, 7, 20, 51):
            samples = (np.asarray(draw(size=size), dtype=float) for _ in range(2000))
            intervals = map(median_interval, samples)
            misses = (not low <= median <= high for low, high in intervals)
            assert rarely(misses, 0.05, 2000), size
    assert median_interval(np.arange(5.0)) == (-math.inf, math.inf)
    assert median_interval(np.zeros(0)) == (-math.inf, math.inf)
    assert median_interval(np.array([5.0, 1, 2, 4, 3, 6])) == (1.0, 6.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_sign_test_is_that_of_a_loop(seed: int) -> None:
    bursts = random_onsets(seed)
    lags = []
    for burst in bursts:
        names = sorted(burst, key=LAYERS.index)
        if len(names) > 1:
            lags.append(burst[names[-1]] - burst[names[0]])
    test = shallow_first(onsets(*bursts))
    before, after = sum(lag > 0 for lag in lags), sum(lag < 0 for lag in lags)
    assert (test.events, test.before, test.after) == (len(lags), before, after)
    assert test.ties == lags.count(0)
    assert test.lag == np.median(lags)
    # the two-sided sign test, enumerated: every sign as likely
    total = before + after
    law = stats.binom.pmf(np.arange(total + 1), total, 0.5)
    at_least = abs(before - total / 2) - 1e-9
    assert test.p_value == pytest.approx(
        law[abs(np.arange(total + 1) - total / 2) >= at_least].sum()
    )


def test_no_order_gives_false_alarms_at_no_more_than_the_level() -> None:
    """Layers that join at random, more of them deep: the deepest still leads half of the time."""
    rng = np.random.default_rng(0)

    def alarms() -> Iterator[bool]:
        for _ in range(400):
            bursts = [
                {
                    layer: int(rng.integers(0, 30))
                    for layer in LAYERS
                    if rng.random() < 0.7 or layer == "head"
                }
                for _ in range(15)
            ]
            yield shallow_first(onsets(*bursts)).p_value <= 0.05

    assert rarely(alarms(), 0.05, 400)


def test_a_planted_lag_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    bursts = [{"patch_embed": 10, "head": 10 + int(rng.poisson(3))} for _ in range(30)]
    test = shallow_first(onsets(*bursts), "patch_embed", "head")
    assert test.before + test.ties == test.events == 30
    assert test.p_value < 1e-6
    assert test.low <= 3 <= test.high
    assert test.high - test.low <= 2


def test_named_layers_are_compared_only_where_both_spike() -> None:
    bursts = [{"patch_embed": 5, "blocks.1": 3}, {"patch_embed": 5, "head": 4}, {"blocks.1": 1}]
    test = shallow_first(onsets(*bursts), "patch_embed", "blocks.1")
    assert (test.events, test.before, test.after, test.lag) == (1, 0, 1, -2)
    assert (test.low, test.high) == (-math.inf, math.inf)


def test_ties_and_nothing_decide_nothing() -> None:
    tied = shallow_first(onsets(*[{"patch_embed": 5, "head": 5}] * 8))
    assert (tied.events, tied.ties, tied.p_value) == (8, 8, 1.0)
    assert (tied.lag, tied.low, tied.high) == (0, 0, 0)
    nothing = shallow_first(onsets())
    assert (nothing.events, nothing.p_value) == (0, 1.0)
    assert math.isnan(nothing.lag)
    assert onset_order(onsets()).empty
