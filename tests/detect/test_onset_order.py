import math
from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.detect import onset_order, shallow_first
from stabkit.detect.onset_order import first_in_bursts
from stabkit.detect.robust import median_interval
from tests.detect.sequential import rarely

LAYERS = ["patch_embed", "blocks.0", "blocks.1", "head"]


def onsets(*bursts: dict[str, int]) -> pd.DataFrame:
    """Bursts as {layer: onset}, in the columns of `layer_onsets`."""
    rows = [
        {"burst": i, "layer": layer, "depth": LAYERS.index(layer), "onset": onset}
        | {"lag": onset - min(burst.values())}
        | {"share": (onset == min(burst.values())) / list(burst.values()).count(onset)}
        for i, burst in enumerate(bursts)
        for layer, onset in burst.items()
    ]
    return pd.DataFrame(rows, columns=["burst", "layer", "depth", "onset", "lag", "share"])


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
        times = [list(burst.values()) for burst in shared]
        led = [1 / t.count(min(t)) for t, lag in zip(times, lags, strict=True) if lag == 0]
        assert row["first"] == pytest.approx(sum(led))
        assert row["lag"] == pytest.approx(np.median(lags), nan_ok=True)


def test_expected_firsts_are_the_mean_over_all_orders() -> None:
    times = [3, 3, 4]  # two of three layers are first together
    by_hand = np.mean([(order[0] == 3) / 2 for order in permutations(times)])
    table = onset_order(onsets(dict(zip(LAYERS, times, strict=False))))
    assert table["expected"].tolist() == pytest.approx([by_hand] * 3)
    assert table["first"].tolist() == [0.5, 0.5, 0]


def test_bursts_of_several_runs_are_told_apart() -> None:
    one, two = onsets({"patch_embed": 1, "head": 4}), onsets({"patch_embed": 9, "head": 7})
    both = pd.concat([one.assign(run="a"), two.assign(run="b")])
    assert onset_order(both)["first"].tolist() == [1, 1]
    test = shallow_first(both)
    assert (test.events, test.before, test.after) == (2, 1, 1)


@pytest.mark.lengthy
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
    # exact: how likely so few lags of at most one step are if half of all were, on either side
    law = stats.binom.pmf(np.arange(len(lags) + 1), len(lags), 0.5)
    late, early = sum(lag <= 1 for lag in lags), sum(lag >= -1 for lag in lags)
    expected = min(1, *(2 * law[: few + 1].sum() for few in (late, early)))
    assert test.p_value == pytest.approx(expected)
    assert (test.p_value <= 0.05) == (test.order != "undecided")
    assert (test.order == "shallow first") == (test.low > 1)
    assert (test.order == "deep first") == (test.high < -1)


@pytest.mark.parametrize(("lags", "order"), [
    ([1] * 24 + [0] * 24 + [-1] * 2, "undecided"),
    ([1] * 30, "undecided"),
    ([2] * 30, "shallow first"),
    ([-3] * 20 + [1] * 5, "deep first"),
    ([40] * 5, "undecided"),
])  # fmt: skip
def test_order_is_told_beyond_one_step_and_from_six_bursts_on(lags: list[int], order: str) -> None:
    found = onsets(*({"patch_embed": 50, "head": 50 + lag} for lag in lags))
    assert shallow_first(found).order == order
    # what was recorded every 50 steps is within the error of an onset
    assert shallow_first(found, every=50).order == "undecided"


@pytest.mark.parametrize("seed", range(20))
def test_the_lead_is_tested_against_every_layer_as_likely(seed: int) -> None:
    bursts = random_onsets(seed, events=6)
    test = first_in_bursts(onsets(*bursts), "patch_embed")
    mine = [list(b.values()) for b in bursts if "patch_embed" in b and len(b) > 1]
    shares = [
        (b["patch_embed"] == min(b.values())) / list(b.values()).count(b["patch_embed"])
        for b in bursts
        if "patch_embed" in b and len(b) > 1
    ]
    assert test.events == len(mine)
    assert test.first == pytest.approx(sum(shares))
    assert test.expected == pytest.approx(sum(1 / len(v) for v in mine))
    # enumerate: in each burst the layer is any of the places
    leading = [[t == min(v) for t in v] for v in mine]
    hits = sum(share > 0 for share in shares)
    law = np.array([sum(places) for places in product(*leading)])
    expected = min(1.0, 2 * min(np.mean(law >= hits), np.mean(law <= hits)))
    assert test.p_value == pytest.approx(expected)
    if test.p_value < 1:
        assert (test.p_value < 0.05) == (not test.low <= 1 <= test.high)


def test_layers_that_rise_at_once_lead_nothing() -> None:
    test = first_in_bursts(onsets(*[dict.fromkeys(LAYERS, 5)] * 30), "patch_embed")
    assert (test.first, test.expected) == (7.5, 7.5)
    assert (test.low, test.high, test.p_value) == (0, math.inf, 1)
    led = first_in_bursts(onsets(*[{"patch_embed": 5, "head": 7}] * 8), "patch_embed")
    assert (led.first, led.expected, led.odds) == (8, 4, math.inf)
    assert led.low > 1
    assert led.p_value == pytest.approx(2 / 2**8)


@pytest.mark.lengthy
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
    assert test.order == "shallow first"
    assert test.p_value < 0.01
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
