import numpy as np
import pytest
from scipy import stats

from stabkit.detect import find_spikes, find_swells
from stabkit.detect.simulate import layers, simulate_norms
from stabkit.detect.swells import BAR, FLANK, WIDTHS, find_layer_swells, stretch_heights


def healthy(seed: int, size: int = 500, **law: float) -> np.ndarray:
    return simulate_norms(np.random.default_rng(seed), steps=size, **({"sigma": 0.2} | law))


def swollen(seed: int, at: int = 300, width: int = 12, ratio: float = 2.5, **law) -> np.ndarray:
    values = healthy(seed, **law)
    values[at : at + width] *= ratio
    return values


def brute_force(y: np.ndarray) -> dict[tuple[int, int], tuple[float, float]]:
    """Apply the rule with plain loops; return height and rise of each (width, first value)."""
    n = len(y)
    padded = [y[0], y[0], *y, y[-1], y[-1]]
    smooth = [float(np.median(padded[i : i + 5])) for i in range(n)]

    def changes(values, lag, last):
        """Return the noise that changes show up to value `last`, renewed every 20 values."""
        size = min(100, n - lag)
        last = max(size + lag - 1, last - (last - size - lag + 1) % 20)
        seen = [values[i] - values[i - lag] for i in range(last - size + 1, last + 1)]
        return 1.4826 / np.sqrt(2) * np.median(np.abs(seen - np.median(seen)))

    found, least = {}, 0.0
    for k, width in enumerate(WIDTHS):
        flank, both, apart = max(width, FLANK), {}, {}
        for a in range(flank, n - width - flank + 1):
            before = np.mean(smooth[a - flank : a])
            inside = np.mean(smooth[a : a + width])
            after = np.mean(smooth[a + width : a + width + flank])
            noise = max(0.01, changes(y, 1, a - 1), changes(smooth, 5, a - 1) / 0.6)
            both[a] = (inside - (before + after) / 2) / noise
            level = max(before, after)
            if a < flank + 64:  # the line through the means of both halves of the values before
                half = flank // 2
                late, soon = np.mean(smooth[a - half : a]), np.mean(smooth[a - flank : a - half])
                level = max(level, before + (late - soon) / half * (flank + width) / 2)
            apart[a] = (inside - level, noise)
        if len(both) - 1 < 2 * width:
            break
        scatter = list(both.values())
        upper = np.quantile(scatter, 0.85, method="lower") / 1.0364
        scale = max(1.4826 * np.median(np.abs(scatter)), upper, least)
        for a, (rise, noise) in apart.items():
            found[width, a] = rise / noise / (scale * (1 + 4 * width / n)), rise
        least = scale * np.sqrt(width / WIDTHS[min(k + 1, 5)])
    return found


@pytest.mark.lengthy
@pytest.mark.parametrize("size", [60, 150, 301])
def test_heights_agree_with_brute_force(size: int) -> None:
    y = np.log(healthy(size, size, ar=0.5))
    heights, rises = stretch_heights(np.array([y, y[::-1]]))
    expected = brute_force(y)
    assert np.isfinite(heights[0]).sum() == len(expected)
    for (width, a), (height, rise) in expected.items():
        i = WIDTHS.index(width)
        assert heights[0, i, a] == pytest.approx(height, rel=1e-9, abs=1e-9)
        assert rises[0, i, a] == pytest.approx(rise, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("width", [8, 12, 24])
def test_a_planted_swell_is_located_and_sized(width: int) -> None:
    for seed in range(10):
        (found,) = find_swells(np.arange(0, 1000, 2), swollen(seed, width=width)).to_dict("records")
        assert abs(found["onset"] - 600) <= 8
        assert abs(found["end"] - (600 + 2 * width - 2)) <= 8
        assert found["ratio"] == pytest.approx(2.5, rel=0.3)
        assert found["height"] >= 5.5


def test_the_hump_of_a_norm_as_training_begins_is_no_swell() -> None:
    """A norm that triples in 25 steps and halves again within 40; a swell there is still found."""
    at = np.arange(300)
    hump = 0.06 + 0.13 * np.exp(-0.5 * ((at - 33) / np.where(at < 33, 12, 25)) ** 2)
    for seed in range(20):
        assert not len(find_swells(at, hump * healthy(seed, 300, sigma=0.05)))
    found = 0
    for seed in range(20):
        values = healthy(seed, 300)
        values[30:42] *= 3
        found += len(find_swells(at, values)) > 0
    assert found >= 18


def test_no_single_step_need_stand_out() -> None:
    steps, spiked, swelled = np.arange(500), 0, 0
    for seed in range(20):
        values = swollen(seed, ratio=2.0, sigma=0.2)
        spiked += len(find_spikes(steps, values)) > 0
        swelled += len(find_swells(steps, values)) > 0
    assert spiked <= 2
    assert swelled >= 14


@pytest.mark.parametrize(
    "trend",
    [
        np.linspace(0, 5, 500),
        np.linspace(5, 0, 500),
        3 * np.exp(-np.arange(500) / 40),
        np.log(3) * (np.arange(500) >= 250),
        0.5 * (np.arange(500) % 50) / 50,
        np.log(10) * np.minimum(np.arange(500) / 100, 1),
    ],
    ids=["rises", "falls", "falls at first", "shifts", "saw-tooth", "warm-up"],
)
def test_a_trend_is_no_swell(trend: np.ndarray) -> None:
    for seed in range(10):
        assert find_swells(np.arange(500), healthy(seed) * np.exp(trend)).empty


def test_high_values_of_one_or_two_steps_are_no_swell() -> None:
    values = healthy(3)
    values[[100, 101, 250, 400, 401]] *= 1000
    assert find_swells(np.arange(500), values).empty


@pytest.mark.lengthy
@pytest.mark.parametrize("law", [{}, {"ar": 0.5}, {"ar": 0.9}, {"tails": 5.0}])
def test_false_swells_stay_within_the_stated_rate(law: dict[str, float]) -> None:
    steps = np.arange(500)
    found = find_layer_swells([(steps, healthy(seed, **law)) for seed in range(1000, 1003)])
    # 3 layers: none is shared, so many series can be searched at once
    for first in range(0, 240, 3):
        found += find_layer_swells([(steps, healthy(s, **law)) for s in range(first, first + 3)])
    alarms = sum(map(len, found))
    assert alarms <= stats.poisson.ppf(0.999, 1.0 * 243 * 500 / 1e5)


@pytest.mark.lengthy
def test_a_swell_that_layers_share_is_one_of_each() -> None:
    steps = np.arange(500)
    shared = alone = 0
    for first in range(0, 160, 8):
        layers = [(steps, swollen(s, ratio=1.7, width=10)) for s in range(first, first + 8)]
        shared += sum(map(len, find_layer_swells(layers)))
        alone += sum(len(find_swells(*layer)) for layer in layers)
    assert shared >= 1.2 * alone > 0


def test_layers_with_other_steps_are_judged_alone() -> None:
    steps = np.arange(500)
    layers = [(steps, swollen(s)) for s in range(4)]
    other = (steps[100:], swollen(7)[100:])
    found = find_layer_swells([*layers, other])
    pd_rows = [found[4].to_dict("records"), find_swells(*other).to_dict("records")]
    assert pd_rows[0] == pd_rows[1] != []


def test_holes_are_left_out() -> None:
    values = swollen(1)
    steps = np.arange(503)
    holed = np.insert(values, [10, 20, 480], [np.nan, 0.0, np.inf])
    (found,) = find_swells(steps, holed).to_dict("records")
    (clean,) = find_swells(np.arange(500), values).to_dict("records")
    assert found["height"] == pytest.approx(clean["height"])
    assert found["onset"] == clean["onset"] + 2


def test_near_constant_series_have_no_swell() -> None:
    jitter = 1e-7 * np.random.default_rng(7).standard_normal(500)
    jitter[300:310] += 0.09
    assert find_swells(np.arange(500), np.ones(500)).empty
    assert find_swells(np.arange(500), np.exp(jitter)).empty
    jitter[300:310] += 0.02
    assert len(find_swells(np.arange(500), np.exp(jitter))) == 1


def test_short_series_give_an_empty_frame_with_its_columns() -> None:
    for size in (0, 1, 59, 60):
        swells = find_swells(np.arange(size), np.ones(size))
        assert list(swells) == ["onset", "end", "height", "ratio"]
        assert swells.empty


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"negative.*-1\.0 at step 7"):
        find_swells(np.arange(80), np.where(np.arange(80) == 7, -1.0, 1.0))
    with pytest.raises(ValueError, match="strictly increasing"):
        find_swells(np.zeros(80), np.ones(80))


@pytest.mark.lengthy
def test_long_runs_of_many_layers_have_no_more_false_swells() -> None:
    steps = np.arange(4_000)
    runs = [layers(seed, name="AR .5", steps=4_000).norms.T for seed in range(30)]
    low = [stretch_heights(np.log(norms))[0].max() >= BAR for norms in runs]
    assert sum(low) >= 3  # at the bar of a short series of one layer
    alarms = [any(map(len, find_layer_swells([(steps, row) for row in run]))) for run in runs]
    assert sum(alarms) <= 2


def test_the_bar_rises_with_the_number_of_values() -> None:
    steps = np.arange(500)
    swell = (steps, swollen(2, ratio=1.6))
    (found,) = find_swells(*swell).to_dict("records")
    quiet = [(steps, healthy(s)) for s in range(200, 203)]  # 3 layers share no swell
    assert 5.5 < found["height"] < 7.2
    assert len(find_layer_swells([swell, *quiet])[0]) == 1
    many = [(steps, np.ones(500)) for _ in range(60)]
    assert find_layer_swells([swell, *many])[0].empty
    sure = (steps, swollen(2, ratio=6.0))  # one layer is enough: the other belongs to it
    assert [len(rows) for rows in find_layer_swells([swell, sure, *many])][:2] == [1, 1]
    elsewhere = (steps, swollen(3, at=120, ratio=1.75))
    assert len(find_swells(*elsewhere)) == 1
    assert [len(rows) for rows in find_layer_swells([elsewhere, sure, *many])][:2] == [0, 1]
