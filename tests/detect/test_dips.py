"""Dips: false alarms, power and location on simulated runs; columns on curves made by hand."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.detect import dip_rows, find_dips
from stabkit.detect.dip_search import lost_for_good, strength
from stabkit.detect.dip_windows import weights_of, width_count
from stabkit.detect.dips import search_dips
from stabkit.detect.robust import noise_scale
from stabkit.detect.significance import answer_similarity, holm, paired_p, unpaired_p
from stabkit.detect.simulate import EVERY, TRENDS, Planted, ar1, simulate_curve
from tests.detect.sequential import rarely

FLAT = np.full(100, 0.5)


def with_dip(accuracy: np.ndarray, at: int, width: int, depth: float) -> np.ndarray:
    accuracy = accuracy.copy()
    accuracy[at : at + width] -= depth
    return accuracy


def at_most(hits: int, runs: int, rate: float) -> bool:
    """Whether so many hits are within chance (1 in 1,000) of a rate that is claimed as a bound."""
    return hits <= stats.binom.ppf(0.999, runs, rate)


@pytest.mark.lengthy
@pytest.mark.parametrize("ar", [0.0, 0.5])
def test_healthy_runs_alarm_no_more_than_stated(ar: float) -> None:
    """docs/error-rates.md has 2,000 runs; these few catch a rate of some percent."""

    def alarms() -> Iterator[bool]:
        for seed in range(150):
            trend = list(TRENDS)[seed % len(TRENDS)]
            curve = simulate_curve(np.random.default_rng(seed), trend=trend, ar=ar, n=500)
            yield not find_dips(curve.step, curve.accuracy, correct=curve.correct).empty

    assert rarely(alarms(), 0.01, 150)


@pytest.mark.lengthy
def test_accuracy_alone_alarms_no_more_than_stated() -> None:
    def alarms() -> Iterator[bool]:
        for seed in range(200):
            rng = np.random.default_rng(seed)
            trend = TRENDS[list(TRENDS)[seed % len(TRENDS)]](np.linspace(0, 1, 100))
            noise = 0.01 * ar1(rng, 100, 0.5 * (seed % 2))[:, 0]
            yield not find_dips(np.arange(100), np.clip(trend + noise, 0, 1)).empty

    assert rarely(alarms(), 0.01, 200)


@pytest.mark.lengthy
def test_the_paired_test_alone_holds_its_level() -> None:
    """With the noise rule opened wide, samples that flip slowly still do not pass for a dip."""
    tested: list[bool] = []

    def alarms() -> Iterator[bool]:
        for seed in range(60):
            rng, ar = np.random.default_rng(seed), (0.0, 0.5, 0.9)[seed % 3]
            curve = simulate_curve(rng, n=300, noise=0.0, ar=ar, trend="flat")
            options = {"min_depth": 1e-9, "threshold": 1.0, "min_fall": 0.0}
            tested.append(not find_dips(curve.step, curve.accuracy, **options).empty)
            yield not find_dips(curve.step, curve.accuracy, correct=curve.correct, **options).empty

    assert rarely(alarms(), 0.01, 60)
    assert sum(tested) > len(tested) / 3, "the noise rule would have let these pass"


@pytest.mark.lengthy
@pytest.mark.parametrize("ar", [0.0, 0.5])
def test_five_points_for_four_evaluations_are_found_where_they_are(ar: float) -> None:
    errors: list[int] = []

    def misses() -> Iterator[bool]:
        for seed in range(60):
            rng = np.random.default_rng(seed)
            at = int(rng.integers(20, 80))
            curve = simulate_curve(rng, ar=ar, planted=(Planted(at, 4, 0.05),))
            dips = find_dips(curve.step, curve.accuracy, correct=curve.correct)
            found = [d for d in abs(dips["onset"] - EVERY * (at - 1)) if d <= 4 * EVERY]
            errors.extend(found)
            yield not found

    assert rarely(misses(), 0.05, 60)
    near = sum(error <= EVERY for error in errors)
    assert near >= 0.9 * len(errors)


@pytest.mark.lengthy
def test_the_noise_estimate_is_unbiased_and_ignores_the_trend() -> None:
    rng = np.random.default_rng(4)
    # One estimate scatters by .10, the mean of 300 by .006. On a slope steeper than the noise each
    # median is a single value: the scale rises by at most sqrt(1.5 / (1 + .29 / 2)) = 1.14.
    for trend, low, high in ((FLAT, 0.97, 1.02), (np.linspace(0, 1, 100), 1.0, 1.14)):
        ratio = [noise_scale(trend + 0.01 * ar1(rng, 100, 0.0)[:, 0])[0] / 0.01 for _ in range(300)]
        assert low <= np.mean(ratio) <= high


@pytest.mark.parametrize("ar", [0.25, 0.5, 0.8])
def test_slow_noise_is_recognized_on_average(ar: float) -> None:
    rng = np.random.default_rng(5)
    found = np.array([noise_scale(ar1(rng, 100, ar)[:, 0]) for _ in range(300)])
    # 300 estimates that scatter by .3 and .17: means within .02 and .01; corrected by their means,
    # and a mean of quotients is not the quotient of means.
    assert found[:, 0].mean() == pytest.approx(1, abs=0.06)
    assert found[:, 1].mean() == pytest.approx(ar, abs=0.05)


def test_noise_is_not_blown_up_by_a_run_that_is_half_dips() -> None:
    rng = np.random.default_rng(5)
    inside = (np.arange(100) // 5) % 2 == 1
    found = find_dips(np.arange(100), FLAT + 0.01 * rng.normal(size=100) - 0.10 * inside)
    assert len(found) in (9, 10)  # the tenth may end with the run
    assert found.attrs["noise"] == pytest.approx(0.01, rel=0.4)  # 50 values: std .14, bound 3 std


def noiseless_dip() -> np.ndarray:
    curve = np.full(30, 0.8)
    curve[10:15] = [0.7, 0.6, 0.5, 0.6, 0.7]
    return curve


def test_the_columns_of_a_noiseless_dip_are_exact() -> None:
    row = find_dips(np.arange(30) * 10, noiseless_dip(), chance=0.2).iloc[0]
    assert (row.onset, row.trough, row.recovery) == (90, 120, 150)
    assert row.depth == pytest.approx(0.3, abs=1e-12)
    assert row.relative_depth == pytest.approx(0.5, abs=1e-12)
    assert row.area == pytest.approx(10 * (0.1 + 0.2 + 0.3 + 0.2 + 0.1), abs=1e-12)
    assert row.half_recovery == 20, "0.7 is the first of two that have half of it back"
    assert row.permanent_loss == pytest.approx(0, abs=1e-12)
    assert np.isnan(row.p_value)
    assert row.severity == "benign"


def test_one_low_evaluation_is_not_a_dip() -> None:
    noise = 0.005 * np.random.default_rng(0).normal(size=40)
    for lone in (0.1, 0.5):
        assert find_dips(np.arange(40), with_dip(0.8 + noise, 12, 1, lone)).empty
        assert len(find_dips(np.arange(40), with_dip(0.8 + noise, 12, 2, lone))) == 1


def test_a_lone_low_evaluation_does_not_hide_the_dip_beside_it() -> None:
    curve = with_dip(with_dip(np.full(60, 0.8), 20, 1, 0.5), 30, 4, 0.1)
    curve += 0.005 * np.random.default_rng(0).normal(size=60)
    assert find_dips(np.arange(60), curve)["onset"].tolist() == [29]


def test_a_stall_of_a_rising_curve_is_not_a_dip() -> None:
    rng = np.random.default_rng(1)
    stall = np.minimum(np.arange(60), np.maximum(20, np.arange(60) - 12)) / 100 + 0.1
    found = [len(find_dips(np.arange(60), stall + 0.005 * rng.normal(size=60))) for _ in range(40)]
    # Against the trend alone, without the fall, all of them would be dips.
    assert at_most(np.count_nonzero(found), 40, 0.03)


@pytest.mark.lengthy
def test_a_slow_sag_that_ends_in_a_leap_needs_a_sharper_fall_than_one_that_returns() -> None:
    """The plateau before a drop of the learning rate: the leap is no recovery."""
    t = np.arange(100)
    sag = 0.5 - 0.02 * np.clip((t - 20) / 30, 0, 1)
    leaps, returns = [], []
    for seed in range(60):
        noise = 0.006 * ar1(np.random.default_rng(seed), 100, 0.3)[:, 0]
        leaps.append(len(find_dips(t, sag + 0.08 * (t >= 50) + noise)))
        returns.append(len(find_dips(t, sag + 0.02 * (t >= 50) + noise)))
    assert np.count_nonzero(leaps) < np.count_nonzero(returns)
    sharp = with_dip(0.5 + 0.08 * (t >= 50) + noise, 44, 6, 0.08)
    assert len(find_dips(t, sharp)) == 1, "a sharp fall that ends in a leap is a dip"


def test_one_outlier_that_decays_is_no_dip() -> None:
    noise = 0.002 * np.random.default_rng(0).normal(size=60)
    for at in (20, 40):
        curve = 0.7 + noise
        curve[at : at + 4] -= 0.1 * 0.5 ** np.arange(4)
        assert find_dips(np.arange(60), curve).empty
        curve[at + 1] -= 0.03
        assert len(find_dips(np.arange(60), curve)) == 1, "two of a size are one"


def test_a_return_between_parts_two_dips_of_one_window() -> None:
    noise = 0.008 * np.random.default_rng(1).normal(size=120)
    curve = with_dip(with_dip(np.full(120, 0.55) + noise, 31, 4, 0.06), 42, 30, 0.08)
    found = find_dips(np.arange(120), curve)
    inside = [(a <= 31 < b, a <= 42 < b) for a, b in zip(found.onset, found.recovery, strict=True)]
    assert inside == [(True, False), (False, True)]


def test_a_curve_is_smooth_in_steps_where_evaluations_become_rare() -> None:
    """Evaluations are ten times as far apart from the middle on: no fall, only a wider gap."""
    rng, found = np.random.default_rng(2), []
    for _ in range(40):
        step = np.cumsum(np.repeat([5, 50], 50))
        curve = 0.7 - 0.5 * np.exp(-step / 1500) + 0.004 * rng.normal(size=100)
        found.append(len(find_dips(step, curve)))
    assert at_most(np.count_nonzero(found), 40, 0.01)


def test_a_quiet_end_in_whole_percents_does_not_make_dips_of_the_noise_before() -> None:
    """As where a supervised training logs 0.94: most accuracies equal the one before."""
    alarms = found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = np.repeat([0.02, 0.002], [80, 120]) * rng.normal(size=200)
        curve = np.repeat([0.84, 0.93], [80, 120]) + noise
        alarms += len(find_dips(np.arange(200), curve.round(2))) > 0
        found += len(find_dips(np.arange(200), with_dip(curve, 150, 4, 0.03).round(2))) > 0
    assert alarms <= 3
    assert found == 20


def test_the_first_step_may_be_as_large_as_a_time_in_nanoseconds() -> None:
    rng = np.random.default_rng(3)
    rising = 0.7 - 0.4 * np.exp(-np.arange(100) / 20) + 0.008 * rng.normal(size=100)
    curve, step = with_dip(rising, 50, 8, 0.06), 5 * np.arange(100)
    near, far = find_dips(step, curve), find_dips(step + 10**18, curve)
    assert len(near) == 1
    assert far.onset.tolist() == [near.onset[0] + 10**18]
    assert far.z[0] == near.z[0]


def test_a_run_that_ends_in_a_dip_is_censored_and_one_that_lost_all_is_over() -> None:
    found = find_dips(np.arange(30), with_dip(np.full(30, 0.8), 24, 6, 0.2))
    assert found.severity.tolist() == ["censored"]
    assert np.isnan(found.recovery[0])
    assert np.isnan(found.half_recovery[0])
    assert found.area[0] == pytest.approx(0.2 * 5.5)  # trapezoids: half of the fall, five inside
    lost = find_dips(np.arange(30), with_dip(np.full(30, 0.8), 10, 20, 0.65), chance=0.1)
    assert lost.severity.tolist() == ["terminal"]
    assert lost.relative_depth[0] == pytest.approx(0.65 / 0.7)


def test_severity_tells_back_on_trend_from_below_it() -> None:
    line = np.linspace(0.2, 0.7, 60)
    on_trend = with_dip(line, 25, 5, 0.2)
    below = line.copy()
    below[25:] = line[25:] - 0.12
    below[25:30] -= 0.1
    partly = with_dip(np.full(60, 0.8), 25, 5, 0.2)
    partly[30:] = 0.75
    assert find_dips(np.arange(60), on_trend).severity.tolist() == ["benign"]
    lost = find_dips(np.arange(60), below)
    assert lost.severity.tolist() == ["lingering"]
    assert lost.permanent_loss[0] == pytest.approx(0.12, abs=0.02)
    settled = find_dips(np.arange(60), partly)
    assert settled.severity.tolist() == ["lingering"]
    assert settled.permanent_loss[0] == pytest.approx(0.05, abs=0.005)


def restarted(rng: np.random.Generator, same: bool) -> tuple[np.ndarray, float]:
    """Answers with a dip in the middle, after which `same` or other samples are the hard ones."""
    hard, other = rng.random(400), rng.random(400)
    level = with_dip(np.full(40, 0.6), 18, 4, 0.2)
    difficulty = np.where((np.arange(40) < 18)[:, None] | same, hard, other)
    bits = difficulty + 0.05 * rng.normal(size=(40, 400)) < level[:, None]
    seeds = [rng.random(400) + 0.05 * rng.normal(size=(5, 400)) < 0.6 for _ in range(2)]
    return bits, answer_similarity(*seeds)


@pytest.mark.parametrize(("same", "severity"), [(True, "benign"), (False, "restart")])
def test_a_restart_answers_like_another_seed_afterwards(same: bool, severity: str) -> None:
    bits, between = restarted(np.random.default_rng(3), same)
    found = find_dips(np.arange(40), bits.mean(axis=1), correct=bits, between=max(between, 0.1))
    assert found.severity.tolist() == [severity]
    assert (found.similarity[0] > 0.5) == same
    assert find_dips(np.arange(40), bits.mean(axis=1), correct=bits).severity[0] == "benign"


def test_dips_are_separate_only_after_a_return() -> None:
    apart = with_dip(with_dip(np.full(40, 0.8), 10, 3, 0.1), 16, 3, 0.1)
    found = find_dips(np.arange(40), apart)
    assert found[["onset", "recovery"]].to_numpy().tolist() == [[9, 13], [15, 19]]
    joined = with_dip(apart, 13, 3, 0.06)
    assert find_dips(np.arange(40), joined)[["onset", "recovery"]].to_numpy().tolist() == [[9, 19]]


def test_paired_p_is_the_t_test_of_each_samples_contrast() -> None:
    rng = np.random.default_rng(8)
    bits = rng.random(400) + 0.1 * rng.normal(size=(30, 400)) < with_dip(
        np.full(30, 0.7), 12, 4, 0.15
    ).reshape(-1, 1)
    weights = weights_of(np.arange(30.0), 12, 16)
    sums = [sum(w * b for w, b in zip(weights, bits[:, i], strict=True)) for i in range(400)]
    t = stats.ttest_1samp(sums, 0, alternative="greater")
    assert paired_p(weights, bits) == pytest.approx(stats.norm.sf(t.statistic), rel=1e-4)
    found = find_dips(np.arange(30), bits.mean(axis=1), correct=bits).iloc[0]
    assert found.p_value <= 0.01
    # The reported p is that of the window found, after Holm over every window.
    possible = [
        paired_p(weights_of(np.arange(30.0), a, b), bits) * 30 * width_count(30)
        for a in range(10, 14)
        for b in range(14, 18)
    ]
    assert any(found.p_value == pytest.approx(min(1, p)) for p in possible)


def test_unpaired_p_has_the_binomial_standard_error() -> None:
    accuracy = with_dip(np.full(20, 0.7), 10, 2, 0.1)
    weights, counts = weights_of(np.arange(20.0), 10, 12), np.full(20, 2000)
    variance = sum(w**2 * a * (1 - a) / 2000 for w, a in zip(weights, accuracy, strict=True))
    assert unpaired_p(weights, accuracy, counts) == pytest.approx(
        stats.norm.sf(0.1 / math.sqrt(variance))
    )
    assert len(find_dips(np.arange(20), accuracy, 2000)) == 1
    assert find_dips(np.arange(20), accuracy, 100).empty
    assert len(find_dips(np.arange(20), accuracy)) == 1


def test_holm_is_its_definition() -> None:
    # Three hypotheses of five: 5 p1, 4 p2, then never less than the one before.
    assert holm([0.02, 0.001, 0.021], 5) == pytest.approx([0.08, 0.005, 0.08])


@pytest.mark.lengthy
def test_row_by_row_finds_what_one_call_finds() -> None:
    """The online detector is the same call on the evaluations so far.

    The last call is the offline one, and a dip is known within five evaluations of its end.
    """
    rng = np.random.default_rng(9)
    curve = simulate_curve(rng, trend="saturating", planted=(Planted(50, 5, 0.08),))
    known = None
    for count in range(8, 101):
        found = find_dips(curve.step[:count], curve.accuracy[:count], correct=curve.correct[:count])
        if known is None and len(found):
            known = count
    whole = find_dips(curve.step, curve.accuracy, correct=curve.correct)
    pd.testing.assert_frame_equal(found, whole)
    assert whole["onset"].tolist() == [49 * EVERY]
    assert known is not None
    assert 50 < known <= 60


def test_unknown_accuracies_are_left_out_and_counted() -> None:
    whole = noiseless_dip()
    holed = np.insert(whole, [3, 11, 12], np.nan)
    found = find_dips(np.arange(33), holed)
    assert found.attrs["left_out"] == 3
    assert found[["onset", "trough", "recovery"]].to_numpy().tolist() == [[10, 15, 18]]
    assert find_dips(np.arange(8), np.full(8, np.nan)).empty


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_short_series_give_an_empty_frame_with_its_columns(size: int) -> None:
    found = find_dips(np.arange(size), np.full(size, 0.5))
    assert found.empty
    assert list(found) == list(dip_rows.COLUMNS)
    assert found.dtypes.map(str).tolist()[:2] == ["int64", "int64"]


@pytest.mark.lengthy
def test_a_sudden_fall_is_a_dip_where_noise_is_slow() -> None:
    """By their depth alone, 13 of these 20 pass the bar: their noise has AR .9."""
    found = by_depth = 0
    dip = Planted(40, 30, 0.15, "sawtooth")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        curve = simulate_curve(rng, evals=60, noise=0.03, ar=0.9, planted=(dip,))
        dips = find_dips(curve.step, curve.accuracy, correct=curve.correct)
        near = dips[(dips["onset"] - 39 * EVERY).abs() <= 2 * EVERY]
        found += not near.empty
        by_depth += bool((near["z"] >= dips.attrs["threshold"]).any())
    assert found >= 15
    assert by_depth <= found - 4


def test_longer_runs_keep_the_rate_of_a_hundred_evaluations() -> None:
    rng = np.random.default_rng(9)
    alarms = (
        not find_dips(np.arange(1000), 0.5 + 0.02 * rng.normal(size=1000)).empty for _ in range(40)
    )
    assert rarely(alarms, 0.01, 40)


def test_possible_dips_reach_four_fifths_of_the_bar_and_are_not_among_the_dips() -> None:
    kinds = {False: 0, True: 0}
    for seed in range(60):
        curve = simulate_curve(np.random.default_rng(seed), trend="saturating", ar=0.5, n=500)
        accuracy = with_dip(curve.accuracy, 60, 4, 0.03)
        found = search_dips(curve.step, accuracy)
        dips, bar = find_dips(curve.step, accuracy), found.attrs["threshold"]
        clear = found[~found["possible"]][dips.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(clear, dips, check_dtype=False)
        for row in found.itertuples():
            share = strength(row.z, row.fall, found.attrs["ar"], bar)
            assert share >= 0.8 if row.possible else share >= 1
            kinds[row.possible] += 1
    assert min(kinds.values()) > 3


def test_bad_input_is_refused() -> None:
    steps, half = np.arange(10), np.full(10, 0.5)
    bits = np.zeros((10, 4), dtype=bool)
    bits[:, :2] = True
    with pytest.raises(ValueError, match="strictly increasing, got 2 at index 3 after 2"):
        find_dips([0, 1, 2, 2], [0.5] * 4)
    with pytest.raises(ValueError, match=r"0\.\.1 or NaN, got 50\.0 at step 4"):
        find_dips(steps, np.where(steps == 4, 50.0, 0.5))
    with pytest.raises(ValueError, match=r"got inf at step 4"):
        find_dips(steps, np.where(steps == 4, np.inf, 0.5))
    with pytest.raises(ValueError, match=r"bool of shape \[10 evaluations"):
        find_dips(steps, half, correct=bits[:9])
    with pytest.raises(ValueError, match="got int64"):
        find_dips(steps, half, correct=bits.astype(np.int64))
    with pytest.raises(ValueError, match=r"holds 0\.5000 but accuracy\[0\] is 0\.8000"):
        find_dips(steps, half + 0.3, correct=bits)
    with pytest.raises(ValueError, match="samples in correct, 4"):
        find_dips(steps, half, 5, bits)
    with pytest.raises(ValueError, match="positive integer"):
        find_dips(steps, half, 0)
    for option, value in {"min_depth": 0, "threshold": -1, "alpha": 1, "chance": 1}.items():
        with pytest.raises(ValueError, match=option):
            find_dips(steps, half, **{option: value})


def test_few_samples_are_no_certainty() -> None:
    """Coin flips of a few samples are no dips; fifty that are wrong at once are one."""
    rng = np.random.default_rng(11)

    def alarms() -> Iterator[bool]:
        for _ in range(20):
            for n in (1, 2, 3, 5, 9):
                bits = rng.random((60, n)) < 0.5
                yield not find_dips(np.arange(60), bits.mean(axis=1), correct=bits).empty

    assert rarely(alarms(), 0.01, 100)
    alike = np.ones((60, 50), dtype=bool)
    alike[20:23] = False
    (dip,) = find_dips(np.arange(60), alike.mean(axis=1), correct=alike).to_dict("records")
    assert dip["p_value"] < 0.01


@pytest.mark.parametrize("low", [3, 4, 5])
@pytest.mark.parametrize("size", [8, 10, 12])
def test_a_short_run_that_ends_at_chance_has_a_dip(size: int, low: int) -> None:
    found = 0
    for seed in range(10):
        rng = np.random.default_rng([seed, size, low])
        accuracy = 0.75 - 0.4 * np.exp(-np.arange(size) / 2) + 0.005 * rng.standard_normal(size)
        accuracy[-low:] = 0.1
        rows = find_dips(np.arange(size), accuracy, chance=0.1)
        found += rows["onset"].tolist() == [size - low - 1] and rows["recovery"].isna().all()
    assert found == 10


@pytest.mark.parametrize("size", [10, 14, 20, 25])
@pytest.mark.parametrize("depth", [0.2, 0.4])
def test_a_short_run_that_falls_at_once_for_good_has_a_dip(size: int, depth: float) -> None:
    found = alarms = 0
    for seed in range(20):
        rng = np.random.default_rng([seed, size])
        share = 0.1 + 0.75 * (1 - np.exp(-(np.arange(size) + 1) / (0.08 * size)))
        accuracy = share + 0.01 * rng.standard_normal(size)
        alarms += not find_dips(np.arange(size), rng.binomial(1000, accuracy) / 1000).empty
        accuracy[size // 2 :] -= depth
        rows = find_dips(np.arange(size), rng.binomial(1000, accuracy) / 1000)
        found += rows["onset"].tolist() == [size // 2 - 1] and rows["recovery"].isna().all()
    assert found >= 18
    assert alarms == 0


def test_a_short_run_that_rises_or_sags_has_no_dip() -> None:
    for size in range(8, 14):
        rise = 0.75 - 0.6 * np.exp(-np.arange(size) / 2)
        assert find_dips(np.arange(size), rise).empty
        rise[-3:] *= 0.87
        assert lost_for_good(rise, np.arange(size, dtype=float), 0.0) is None
        rise[-2:] = 0.1
        assert lost_for_good(rise, np.arange(size, dtype=float), 0.0) is None


@pytest.mark.parametrize("evals", [*range(8, 14), 20, 29])
@pytest.mark.parametrize("highest", [0.0, 0.05, 0.1])
def test_accuracies_that_never_rise_above_chance_have_no_dip(evals: int, highest: float) -> None:
    """They have no level above chance to fall from."""
    accuracy = highest * (np.arange(evals) % 2)
    assert find_dips(np.arange(evals), accuracy, chance=0.1).empty


@pytest.mark.parametrize(("evals", "drop"), [(60, 15), (80, 16), (90, 18), (100, 20)])
def test_a_plateau_before_a_jump_upwards_is_no_dip(evals: int, drop: int) -> None:
    """As where the learning rate drops. The plateau is no longer than the bend before it."""
    t = np.arange(evals)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        noise = np.where(t < drop, 0.008, 0.0024) * rng.normal(size=evals)
        accuracy = 0.1 + 0.7 * (1 - np.exp(-t / 3)) + 0.1 * (t >= drop) + noise
        assert find_dips(t, accuracy).empty
