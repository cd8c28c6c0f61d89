"""`find_spikes` skips what cannot be flagged; the scorer, given every point, is its oracle."""

import numpy as np
import pytest

from stabkit.detect import find_spikes
from stabkit.detect.spikes import SpikeScorer, _flagged, _suspects

OPTIONS = [
    # window, threshold, min_history, mad_floor
    (100, 6.0, 20, 0.01),
    (100, 6.0, 100, 1e-300),
    (20, 3.0, 2, 0.01),
    (7, 4.0, 5, 0.5),
    (3, 2.0, 3, 1e-6),
    (2, 0.5, 2, 0.01),
    (64, 1e6, 10, 1e-12),
]


def every_point(logs, window, threshold, min_history, mad_floor):
    scorer = SpikeScorer(window, threshold, min_history, window // 2, mad_floor)
    scores = [(i, scorer.update(x), scorer.restarted) for i, x in enumerate(logs.tolist())]
    return [(i, *score, restarted) for i, score, restarted in scores if score is not None]


def skipping(logs, window, threshold, min_history, mad_floor):
    scorer = SpikeScorer(window, threshold, min_history, window // 2, mad_floor)
    return _flagged(logs, scorer, _suspects(logs, window, threshold, mad_floor), window)


def series(rng):
    """Return logs of a kind that breaks short cuts, a few hundred to a few thousand long."""
    size = int(rng.choice([0, 1, 2, 19, 99, 100, 101, 124, 125, 126, rng.integers(127, 3000)]))
    noise = rng.normal(size=size)
    kinds = [
        noise,
        rng.standard_t(1.2, size=size),  # half of it spikes
        np.cumsum(noise),
        np.repeat(noise, rng.integers(1, 200))[:size],  # plateaus
        np.round(noise),  # ties
        np.zeros(size),
        1e-14 * noise,  # differences of a few bits
        700 + 1e-13 * np.round(noise),
        np.arange(size) / rng.uniform(1, 100),
        np.where(rng.random(size) < 0.4, 1.0, 0.0) + 0.01 * noise,
    ]
    logs = 10 ** rng.uniform(-3, 1) * kinds[rng.integers(len(kinds))]
    for _ in range(rng.integers(0, 4)):  # spikes, bursts at the start, shifts longer than a window
        at, width = rng.integers(0, size + 1), int(rng.choice([1, 3, 49, 50, 51, 99, 160]))
        logs[at * rng.integers(2) :][:width] += rng.choice([0.08, 0.09, 1.0, 30.0, -30.0])
    return logs


@pytest.mark.parametrize("options", OPTIONS)
def test_every_point_is_flagged_as_the_scorer_alone_would(options):
    rng = np.random.default_rng(OPTIONS.index(options))
    flagged = 0
    for _ in range(80):
        logs = series(rng)
        expected = every_point(logs, *options)
        assert skipping(logs, *options) == expected  # floats too: the same bits
        flagged += len(expected)
    assert flagged > 100 or options[1] == 1e6


@pytest.mark.parametrize("last_bits", range(-3, 4))
@pytest.mark.parametrize("window", [2, 3, 20, 101])
def test_points_on_the_very_threshold_are_not_lost(window, last_bits):
    """A lone point exactly at the bar, or a few last bits to either side of it."""
    rng = np.random.default_rng(window)
    for _ in range(20):
        logs = rng.normal(size=3 * window) * 0.1
        history = logs[window : 2 * window]
        mad = max(np.median(np.abs(history - np.median(history))), 0.01)
        bar = np.median(history) + 6.0 / 0.6745 * mad
        logs[2 * window] = bar + last_bits * np.spacing(bar)
        assert skipping(logs, window, 6.0, 2, 0.01) == every_point(logs, window, 6.0, 2, 0.01)


@pytest.mark.parametrize("last_bits", range(-3, 4))
def test_the_bound_holds_where_it_is_tight(last_bits):
    """Any seven in a row have median 0, MAD 1 and their nearest four 2 apart: no room is left."""
    logs = np.tile([-5.0, -1.0, 0.0, 1.0, -1.0, 1.0, 5.0], 10)
    bar = 6.0 / 0.6745
    logs[40] = bar + last_bits * np.spacing(bar)
    options = (7, 6.0, 7, 0.01)
    expected = every_point(logs, *options)
    assert bool(expected) == (last_bits >= 0)
    assert skipping(logs, *options) == expected


def test_most_points_of_a_healthy_series_are_skipped():
    logs = 0.3 * np.random.default_rng(0).normal(size=100_000)
    assert _suspects(logs, 100, 6.0, 0.01).size < 100


def test_holes_are_no_points_of_the_baseline():
    rng = np.random.default_rng(1)
    value = np.exp(rng.normal(size=2000))
    value[[300, 900]] = 1e6
    hole = rng.random(2000) < 0.3
    hole[[300, 900]] = False
    steps = np.arange(2000)
    holed = np.where(hole, rng.choice([np.nan, np.inf, 0.0], size=2000), value)
    assert find_spikes(steps, holed).equals(find_spikes(steps[~hole], value[~hole]))
