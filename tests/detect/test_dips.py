import numpy as np
import pytest
from scipy import signal, stats

from stabkit.detect import dips, find_dips
from stabkit.detect.robust import noise_scale, trailing_median

EVALS = 100
STEPS = np.arange(EVALS) * 50
FLAT = np.full(EVALS, 0.5)
RISING = 0.1 + 0.6 * (1 - np.exp(-np.arange(EVALS) / 30))
PLATEAU = 0.1 + 0.6 * (1 - np.exp(-np.arange(EVALS) / 12))


def ar1(rng: np.random.Generator, size: int, rho: float = 0.0) -> np.ndarray:
    noise = signal.lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.normal(size=size + 100))
    return noise[100:]


def with_dip(accuracy: np.ndarray, at: int, width: int, depth: float) -> np.ndarray:
    accuracy = accuracy.copy()
    accuracy[at : at + width] -= depth
    return accuracy


def sample_bits(
    rng: np.random.Generator, logit: np.ndarray, n: int, rho: float, flip: float = 1.0
) -> np.ndarray:
    """Correctness of n samples, each with its own difficulty and its own AR(1) noise."""
    difficulty, state = 2 * rng.normal(size=n), rng.normal(size=n)
    out = np.empty((logit.size, n), dtype=bool)
    for t, shift in enumerate(logit):
        state = rho * state + np.sqrt(1 - rho**2) * rng.normal(size=n)
        out[t] = difficulty + flip * state + shift > 0
    return out


def bits_with_dip(rng: np.random.Generator, n: int, at: int, points: float) -> np.ndarray:
    """Six evaluations whose expected accuracy is lower by `points`; 10 % of samples flip."""
    logit, spread = np.zeros(EVALS), np.hypot(2, 0.3)
    logit[at : at + 6] = spread * stats.norm.ppf(0.5 - points)
    return sample_bits(rng, logit, n, 0.0, 0.3)


def within(hits: int, runs: int, rate: float, confidence: float = 0.999) -> bool:
    """Whether the exact binomial interval around hits / runs holds `rate`."""
    interval = stats.binomtest(hits, runs).proportion_ci(confidence)
    return bool(interval.low <= rate <= interval.high)


@pytest.mark.parametrize(
    ("k", "rho", "rate"), [(3, 0, 0.11), (4, 0, 0.001), (4, 0.5, 0.054), (5, 0.5, 0.002)]
)
def test_the_rule_with_known_noise_has_the_published_false_alarm_rates(k, rho, rate):
    rng, runs = np.random.default_rng(0), 1500
    hits = 0
    for _ in range(runs):
        noise = ar1(rng, EVALS, rho)
        ceiling = np.fmax.accumulate(trailing_median(noise, 5))
        hits += bool(dips._spans(noise, ceiling, float(k)))
    assert within(hits, runs, rate)


@pytest.mark.parametrize(("rho", "claimed"), [(0.0, 0.003), (0.5, 0.02)])
def test_false_alarms_with_estimated_noise_stay_within_the_stated_rate(rho, claimed):
    rng, runs = np.random.default_rng(1), 250
    hits = sum(not find_dips(STEPS, FLAT + 0.02 * ar1(rng, EVALS, rho)).empty for _ in range(runs))
    assert hits <= stats.binom.ppf(0.999, runs, claimed)


def test_a_rising_curve_alarms_no_more_than_a_flat_one():
    rng, runs = np.random.default_rng(2), 100
    for trend in (RISING, PLATEAU):
        hits = sum(not find_dips(STEPS, trend + 0.02 * ar1(rng, EVALS)).empty for _ in range(runs))
        assert hits <= stats.binom.ppf(0.999, runs, 0.003)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_healthy_bits_alarm_no_more_than_alpha(rho):
    rng, runs, alpha = np.random.default_rng(3), 50, 0.01
    hits, tested = 0, 0
    for run in range(runs):
        logit = FLAT * 0 if run % 2 else 3 * RISING - 2
        bits = sample_bits(rng, logit, 300, rho)
        options = {"min_depth": 1e-9, "k": 0.8, "alpha": alpha}
        # k is opened wide so that McNemar alone has to hold the line.
        hits += not find_dips(STEPS, bits.mean(axis=1), correct=bits, **options).empty
        tested += not find_dips(STEPS, bits.mean(axis=1), min_depth=1e-9, k=0.8).empty
    assert tested > runs / 4
    assert hits <= stats.binom.ppf(0.999, runs, alpha)


def test_the_noise_estimate_is_unbiased_and_ignores_the_trend():
    rng = np.random.default_rng(4)
    # One estimate scatters by .10, the mean of 300 by .006. On a slope steeper than the noise each
    # median is a single value: the scale rises by at most sqrt(1.5 / (1 + .19 / 2)) = 1.17.
    for trend, low, high in ((FLAT, 0.97, 1.02), (np.linspace(0, 1, EVALS), 1.0, 1.17)):
        ratio = [noise_scale(trend + 0.01 * ar1(rng, EVALS))[0] / 0.01 for _ in range(300)]
        assert low <= np.mean(ratio) <= high


def test_noise_is_not_blown_up_by_a_run_that_is_half_dips():
    rng = np.random.default_rng(5)
    inside = (np.arange(EVALS) // 5) % 2 == 1
    found = find_dips(STEPS, FLAT + 0.01 * ar1(rng, EVALS) - 0.10 * inside)
    assert len(found) in (9, 10)  # the tenth may end with the run
    assert found.attrs["noise"] == pytest.approx(0.01, rel=0.4)  # 50 values: std .14, bound 3 std


@pytest.mark.parametrize(("points", "power"), [(0.07, 0.95), (0.10, 0.99)])
def test_power_for_six_evaluations_of_a_thousand_samples(points, power):
    rng, runs = np.random.default_rng(6), 40
    hits = 0
    for _ in range(runs):
        bits = bits_with_dip(rng, 1000, int(rng.integers(20, 80)), points)
        hits += len(find_dips(STEPS, bits.mean(axis=1), 1000, bits)) == 1
    assert hits >= stats.binom.ppf(0.001, runs, power)


def test_a_planted_dip_is_located_within_one_evaluation():
    rng, runs, s = np.random.default_rng(7), 100, 0.01
    misses = {"onset": 0, "trough": 0, "recovery": 0, "depth": 0}
    for _ in range(runs):
        at = int(rng.integers(45, 85))
        curve = with_dip(PLATEAU + s * ar1(rng, EVALS), at, 6, 0.10)
        dip = find_dips(STEPS, curve).iloc[0]
        misses["onset"] += abs(dip.onset - STEPS[at - 1]) > 50
        misses["recovery"] += abs(dip.recovery - STEPS[at + 6]) > 50
        misses["trough"] += not STEPS[at] <= dip.trough < STEPS[at + 6]
        # The lowest of six is 1.27 s low, the ceiling about 1.2 s high; each scatters by .6 s.
        misses["depth"] += abs(dip.depth - 0.10 - 2.5 * s) > 3 * 0.85 * s
    assert misses["trough"] == 0
    assert max(misses.values()) <= 0.1 * runs


def noiseless_dip() -> np.ndarray:
    curve = np.full(30, 0.8)
    curve[10:15] = [0.7, 0.6, 0.5, 0.6, 0.7]
    return curve


def test_the_columns_of_a_noiseless_dip_are_exact():
    row = find_dips(np.arange(30) * 10, noiseless_dip(), chance=0.2).iloc[0]
    assert (row.onset, row.trough, row.recovery) == (90, 120, 150)
    assert row.depth == pytest.approx(0.3, abs=1e-12)
    assert row.relative_depth == pytest.approx(0.5, abs=1e-12)
    assert row.area == pytest.approx(10 * (0.1 + 0.2 + 0.3 + 0.2 + 0.1), abs=1e-12)
    assert np.isnan(row.p_value)
    assert row.severity == "benign"


def test_one_low_evaluation_is_not_a_dip():
    assert find_dips(np.arange(30), with_dip(np.full(30, 0.8), 12, 1, 0.5)).empty
    assert len(find_dips(np.arange(30), with_dip(np.full(30, 0.8), 12, 2, 0.5))) == 1


def test_a_run_that_ends_in_a_dip_is_censored():
    found = find_dips(np.arange(30), with_dip(np.full(30, 0.8), 24, 6, 0.2))
    assert found.severity.tolist() == ["censored"]
    assert np.isnan(found.recovery[0])
    assert found.area[0] == pytest.approx(0.2 * 5.5)  # trapezoids: half of the fall, five inside


def test_severity_tells_back_on_trend_from_below_it():
    line = np.linspace(0.2, 0.7, 60)
    on_trend = with_dip(line, 25, 5, 0.2)
    below = line.copy()
    below[25:] = line[25:] - 0.12
    partly = with_dip(np.full(60, 0.8), 25, 5, 0.2)
    partly[30:] = 0.75
    assert find_dips(np.arange(60), on_trend).severity.tolist() == ["benign"]
    lost = find_dips(np.arange(60), below)
    assert lost.severity.tolist() == ["lingering"]
    assert lost.recovery.notna().all()
    assert find_dips(np.arange(60), partly).severity.tolist() == ["lingering"]


def test_dips_are_separate_only_after_a_return_to_the_ceiling():
    apart = with_dip(with_dip(np.full(40, 0.8), 10, 3, 0.1), 15, 3, 0.1)
    found = find_dips(np.arange(40), apart)
    assert found[["onset", "recovery"]].to_numpy().tolist() == [[9, 13], [14, 18]]
    joined = with_dip(apart, 13, 2, 0.06)
    assert find_dips(np.arange(40), joined)[["onset", "recovery"]].to_numpy().tolist() == [[9, 18]]


def test_mcnemar_and_holm_agree_with_their_definitions():
    rng = np.random.default_rng(8)
    bits = np.repeat(rng.random(400)[None] < 0.7, 20, axis=0)
    bits[10:13, np.flatnonzero(bits[0])[:30]] = False
    bits[10:13, np.flatnonzero(~bits[0])[:8]] = True
    dip = find_dips(np.arange(20), bits.mean(axis=1), correct=bits).iloc[0]
    expected = 20 * stats.binomtest(30, 38, 0.5, alternative="greater").pvalue
    assert dip.p_value == pytest.approx(expected, rel=1e-9)
    # Three hypotheses of five: 5 p1, 4 p2, then never less than the one before.
    assert dips._holm([0.02, 0.001, 0.021], 5) == pytest.approx([0.08, 0.005, 0.08])


def test_counts_alone_give_fishers_exact_test():
    accuracy = with_dip(np.full(20, 0.7), 10, 3, 0.1)
    expected = 20 * stats.fisher_exact([[1400, 600], [1200, 800]], alternative="greater").pvalue
    assert find_dips(np.arange(20), accuracy, 2000).p_value[0] == pytest.approx(expected, rel=1e-6)
    assert find_dips(np.arange(20), accuracy, 100).empty
    assert len(find_dips(np.arange(20), accuracy)) == 1


def test_the_reference_is_the_median_evaluation_and_not_the_luckiest():
    bits = np.zeros((20, 100), dtype=bool)
    bits[:, :60] = True
    bits[8, :75] = True
    bits[10:13, 30:] = False
    dip = find_dips(np.arange(20), bits.mean(axis=1), correct=bits).iloc[0]
    assert dip.p_value == pytest.approx(20 * 0.5**30, rel=1e-9)


def test_unknown_accuracies_are_left_out_and_counted():
    whole = noiseless_dip()
    holed = np.insert(whole, [3, 11, 12], np.nan)
    found = find_dips(np.arange(33), holed)
    assert found.attrs["left_out"] == 3
    assert found[["onset", "trough", "recovery"]].to_numpy().tolist() == [[10, 15, 18]]
    assert find_dips(np.arange(8), np.full(8, np.nan)).empty


@pytest.mark.parametrize("size", [0, 1, 5, 6])
def test_short_series_give_an_empty_frame_with_its_columns(size):
    found = find_dips(np.arange(size), np.full(size, 0.5))
    assert found.empty
    assert list(found) == list(dips._COLUMNS)
    assert found.dtypes.map(str).tolist()[:2] == ["int64", "int64"]


def test_a_longer_run_keeps_the_rate_of_a_hundred_evaluations():
    rng, runs = np.random.default_rng(9), 60
    flat = np.full(1000, 0.5)
    hits = sum(
        not find_dips(np.arange(1000), flat + 0.02 * ar1(rng, 1000)).empty for _ in range(runs)
    )
    # With k = 4 throughout, 9 % of such runs would alarm.
    assert hits <= stats.binom.ppf(0.999, runs, 0.003)


def test_bad_input_is_refused():
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
    for option, value in {"min_depth": 0, "k": -1, "alpha": 1, "chance": 1}.items():
        with pytest.raises(ValueError, match=option):
            find_dips(steps, half, **{option: value})
