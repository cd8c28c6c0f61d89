from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest

from stabkit.detect import find_bursts, find_spikes, layer_onsets
from stabkit.detect.bursts import burst_gap

LAYERS = ["patch_embed", "blocks.0", "blocks.1", "blocks.10", "norm"]


def spikes(*found: tuple[str, int]) -> pd.DataFrame:
    """Spikes of (layer, onset): two steps long, ratio by depth."""
    rows = [
        {"layer": layer, "depth": LAYERS.index(layer), "onset": onset, "peak": onset + 1}
        | {"end": onset + 2, "height": 9.0, "ratio": 2.0 + LAYERS.index(layer)}
        for layer, onset in found
    ]
    columns = ["layer", "depth", "onset", "peak", "end", "height", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def random_spikes(seed: int, most: int = 24) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, most + 1)
    pairs = {(str(rng.choice(LAYERS)), int(rng.integers(0, 120))) for _ in range(size)}
    return spikes(*sorted(pairs)).sample(frac=1, random_state=seed)


def test_a_planted_burst_through_the_layers_is_one_event() -> None:
    found = spikes(("norm", 48), ("blocks.0", 40), ("patch_embed", 40), ("blocks.1", 42))
    (burst,) = find_bursts(found).to_dict("records")
    assert burst == {
        "onset": 40, "end": 50, "layers": 4, "first": "patch_embed, blocks.0", "ratio": 6.0
    }  # fmt: skip
    onsets = layer_onsets(found)
    assert onsets.columns.tolist() == ["burst", "layer", "depth", "onset", "lag", "share"]
    assert onsets[["layer", "lag"]].to_numpy().tolist() == [
        ["patch_embed", 0], ["blocks.0", 0], ["blocks.1", 2], ["norm", 8]
    ]  # fmt: skip


def test_a_burst_may_travel_for_longer_than_the_gap() -> None:
    """The lag to the last layers is what is asked: a fixed window would cut it at the gap."""
    found = spikes(*((layer, 9 * depth) for depth, layer in enumerate(LAYERS)))
    assert layer_onsets(found, gap=10)["lag"].tolist() == [0, 9, 18, 27, 36]
    assert layer_onsets(found, gap=8)["lag"].tolist() == [0] * 5


@pytest.mark.lengthy
def test_the_gap_is_at_least_the_distance_of_recorded_values() -> None:
    every = [np.arange(0, 3000, n) for n in (1, 50, 100)]
    assert [burst_gap([steps]) for steps in every] == [50, 50, 100]
    assert burst_gap([every[2][:20], every[2][18:]]) == 100
    assert burst_gap([]) == burst_gap([every[2][:1]]) == 50


def test_a_dense_series_of_spikes_is_no_endless_burst() -> None:
    found = spikes(*((layer, 10 * i) for i in range(200) for layer in LAYERS[:2]))
    bursts = find_bursts(found)
    assert len(bursts) == 200
    assert set(bursts["layers"]) == {2}
    assert set(bursts["first"]) == {"patch_embed, blocks.0"}


def test_spikes_of_one_step_stay_together_where_one_of_them_begins_a_burst() -> None:
    found = spikes(("patch_embed", 0), ("blocks.1", 3), ("blocks.0", 8), ("patch_embed", 8))
    bursts = find_bursts(found)
    assert bursts["onset"].tolist() == [0, 8]
    assert bursts["first"].tolist() == ["patch_embed", "patch_embed, blocks.0"]


def all_divisions(steps: list[int]) -> Iterator[list[list[int]]]:
    for cuts in product([False, True], repeat=len(steps) - 1):
        starts = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(steps)]
        yield [steps[a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("seed", range(60))
def test_bursts_are_the_best_of_all_divisions(seed: int) -> None:
    """Against the definition: the fewest that keep the rules, and the longest pauses between."""
    found, gap = random_spikes(seed, 9), 30
    steps = sorted(set(found["onset"]))
    layers = {s: found.loc[found["onset"] == s, "layer"].tolist() for s in steps}

    def keeps_the_rules(burst: list[int]) -> bool:
        inside = [layer for step in burst for layer in layers[step]]
        return len(set(inside)) == len(inside) and all(b - a <= gap for a, b in pairwise(burst))

    def quality(bursts: list[list[int]]) -> tuple[int, int]:
        return len(bursts), -sum(b[0] - a[-1] for a, b in pairwise(bursts))

    allowed = [d for d in all_divisions(steps) if all(map(keeps_the_rules, d))]
    onsets = layer_onsets(found, gap)
    mine = [sorted(set(burst["onset"])) for _, burst in onsets.groupby("burst")]
    assert mine in allowed
    assert quality(mine) == min(map(quality, allowed))
    assert find_bursts(found, gap)["onset"].tolist() == [steps[0] for steps in mine]
    # every spike is in one burst, no layer twice in any, whatever the order of the rows
    assert len(onsets) == len(found)
    assert not onsets.duplicated(["burst", "layer"]).any()
    pd.testing.assert_frame_equal(onsets, layer_onsets(found.sort_values("layer"), gap))


@pytest.mark.parametrize("lag", [20, 40])
def test_a_lag_of_tens_of_steps_is_one_burst_without_layers_between(lag: int) -> None:
    """As in the paper's caption; the next event comes after 60 to 100 steps."""
    found = spikes(*((layer, at + lag * (layer == "norm")) for at in (180, 300, 400)
                     for layer in ("patch_embed", "norm")))  # fmt: skip
    onsets = layer_onsets(found)
    assert onsets["lag"].tolist() == [0, lag] * 3
    assert onsets["share"].tolist() == [1, 0] * 3


def test_a_spike_belongs_to_the_burst_that_is_nearer() -> None:
    """A layer that is in neither burst: joined in the order of steps, it would go to the first."""
    found = spikes(
        ("patch_embed", 0), ("blocks.0", 1), ("norm", 30), ("patch_embed", 32), ("blocks.0", 33)
    )
    assert layer_onsets(found)["burst"].tolist() == [0, 0, 1, 1, 1]


def test_layers_that_are_first_together_share_the_lead() -> None:
    found = spikes(("patch_embed", 5), ("blocks.0", 5), ("norm", 9))
    assert layer_onsets(found)["share"].tolist() == [0.5, 0.5, 0]


def test_bursts_and_onsets_agree() -> None:
    found = random_spikes(3)
    bursts, onsets = find_bursts(found), layer_onsets(found)
    assert onsets.groupby("burst").size().tolist() == bursts["layers"].tolist()
    first = onsets[onsets["lag"] == 0].groupby("burst")["layer"].agg(", ".join)
    assert first.tolist() == bursts["first"].tolist()


def test_no_spikes_are_no_bursts_with_all_columns() -> None:
    assert find_bursts(spikes()).columns.tolist() == ["onset", "end", "layers", "first", "ratio"]
    columns = ["burst", "layer", "depth", "onset", "lag", "share"]
    assert layer_onsets(spikes()).columns.tolist() == columns


def test_spikes_of_a_series_can_be_given_as_they_are_found() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for depth, layer in enumerate(["conv1", "fc"]):
        values = np.exp(0.1 * rng.normal(size=300))
        values[150 + 3 * depth] *= 10
        parts.append(find_spikes(np.arange(300), values).assign(layer=layer, depth=depth))
    assert layer_onsets(pd.concat(parts))["lag"].tolist() == [0, 3]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="missing: depth"):
        find_bursts(spikes(("norm", 1)).drop(columns="depth"))
    with pytest.raises(ValueError, match="gap must be 0 steps or more, got -1"):
        find_bursts(spikes(), gap=-1)
    with pytest.raises(ValueError, match="norm spikes twice at step 1: give one run at a time"):
        layer_onsets(spikes(("norm", 1), ("norm", 1)))
