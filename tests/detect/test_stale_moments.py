import math

import numpy as np
import pytest
from scipy import integrate, stats

from stabkit.detect import find_stale_moments, gradient_surprise
from stabkit.detect.online import OnlineStaleMoments

BETAS = [0.9, 0.95, 0.99, 0.999]


def adam_rms(gradients: np.ndarray, beta2: float, eps: float = 1e-8) -> np.ndarray:
    """Return [steps] by Adam's own recursion, for gradients [steps, elements]."""
    v = np.zeros(gradients.shape[1])
    out = []
    for t, g in enumerate(gradients, start=1):
        v = beta2 * v + (1 - beta2) * g**2
        out.append(np.sqrt(np.mean(g**2 / np.maximum(v / (1 - beta2**t), eps**2))))
    return np.array(out)


@pytest.mark.parametrize("beta2", BETAS)
@pytest.mark.parametrize("at", [1, 2, 7, 400])
@pytest.mark.parametrize("factor", [0.3, 1.0, 2.3, 40.0, 300.0])
def test_a_jump_by_a_factor_is_a_surprise_of_that_factor(beta2, at, factor):
    """Jumps of any size, above or below the ceiling, at any step; Adam remembers 1 before."""
    gradients = np.ones((at + 1, 3)) * [1e-3, 1.0, -50.0]
    gradients[at] *= factor
    rms = adam_rms(gradients, beta2)
    found = gradient_surprise(rms, beta2, np.arange(at + 1) + 1)
    # 1 - (1 - beta2) rms^2 is what cancels: it is beta2 / factor^2 of 1 or more, and its rounding
    # is some 1e-16 of 1, twice that of Adam's own recursion over 400 steps
    assert found[at] == pytest.approx(factor, rel=1e-13 * max(1.0, factor**2) + 1e-11)
    np.testing.assert_allclose(found[1:at], 1.0, rtol=1e-10)
    assert found[0] == np.inf


@pytest.mark.parametrize("beta2", BETAS)
def test_the_surprise_of_normal_gradients_is_the_mean_over_their_elements(beta2):
    """Elements differ in surprise: rms^2 is the mean of f^2 x / (b + (1 - b) f^2 x), x chi^2(1)."""
    factor, elements = 5.0, 4000
    # Adam remembers exactly 1, so that x is the last gradient's and nothing else's
    gradients = np.ones((1500, elements))
    gradients[-1] = factor * np.random.default_rng(1).normal(size=elements)
    found = gradient_surprise(adam_rms(gradients, beta2)[-1], beta2, 1500)

    def share(x: float) -> float:
        return factor**2 * x / (beta2 + (1 - beta2) * factor**2 * x)

    mean, _ = integrate.quad(lambda z: 2 * share(z * z) * stats.norm.pdf(z), 0, 12)
    second, _ = integrate.quad(lambda z: 2 * share(z * z) ** 2 * stats.norm.pdf(z), 0, 12)
    error = math.sqrt((second - mean**2) / elements)
    low, middle, high = (
        math.sqrt(beta2 * m / (1 - (1 - beta2) * m))
        for m in mean + 4 * error * np.array([-1, 0, 1])
    )
    assert low < found < high
    assert middle < factor, "the root mean square is its bound"


@pytest.mark.parametrize("beta2", BETAS)
def test_adam_never_passes_the_ceiling_and_the_surprise_never_fails(beta2):
    rng = np.random.default_rng(int(1e4 * beta2))
    for _ in range(60):
        elements = int(rng.integers(1, 20))
        gradients = rng.standard_cauchy((80, elements)) * 10 ** rng.uniform(-6, 6, size=(80, 1))
        gradients[rng.random((80, elements)) < 0.3] = 0.0
        rms = adam_rms(gradients, beta2, eps=1e-150)
        updates = np.arange(80) + 1
        ceiling = np.sqrt((1 - beta2**updates) / (1 - beta2))
        assert np.all(rms <= ceiling * (1 + 1e-12))
        rms32 = rms.astype(np.float32)  # as it is recorded
        for value in (rms, rms32):
            assert np.all(gradient_surprise(value, beta2, updates) >= 0)
            assert np.all(gradient_surprise(value, beta2) >= 0)


def test_the_surprise_at_the_paper_s_threshold():
    assert gradient_surprise(2.3, 0.999) == pytest.approx(2.3050, abs=5e-5)
    # the same adam_rms is a larger surprise where Adam forgets faster
    assert gradient_surprise(2.3, 0.9) == pytest.approx(3.1794, abs=5e-5)
    assert gradient_surprise(1 / math.sqrt(0.05), 0.95) == np.inf
    assert gradient_surprise([0.0, np.nan, 1.0], 0.95).tolist() == pytest.approx(
        [0.0, np.nan, 1.0], nan_ok=True
    )


@pytest.mark.parametrize("beta2", BETAS)
def test_the_same_jump_is_found_at_every_beta2(beta2):
    """A bar of 2.3 on adam_rms itself, of a jump by 2.4, would miss it at .9 and .95."""
    gradients = np.random.default_rng(3).normal(size=(800, 4000)) * 0.1 + 1
    gradients[600:603] *= 2.4
    gradients[606] *= 5.0
    rms = adam_rms(gradients, beta2)
    found = find_stale_moments(np.arange(800), rms, beta2)
    assert found["onset"].tolist() == [600]
    assert found["peak"].tolist() == [606] == found["end"].tolist()
    assert found["adam_rms"].tolist() == [rms[606]]
    assert (rms[600] >= 2.3) == (beta2 >= 0.99)


def test_events_merge_and_non_finite_values_are_left_out():
    rms = np.ones(400)
    rms[[100, 110, 130, 141]] = 3.0
    rms[120] = np.nan
    find = find_stale_moments
    assert find(np.arange(400), rms, 0.999)["onset"].tolist() == [100, 130, 141]
    assert find(np.arange(400), rms, 0.999, merge=11)["onset"].tolist() == [100, 130]
    assert find(10 * np.arange(400), np.repeat([1, 3.0, 1], [100, 3, 297]), 0.999).shape[0] == 1
    # what stands at the ceiling is the peak, however large the rest
    rms[132] = 1 / math.sqrt(1 - 0.999)
    assert find(np.arange(400), rms, 0.999)["height"][1] == np.inf
    empty = find([], [], 0.95)
    assert list(empty) == ["onset", "peak", "end", "height", "adam_rms"]
    assert empty.dtypes.map(str).tolist() == ["int64"] * 3 + ["float64"] * 2


def test_a_layer_behind_zeros_is_not_stale_when_its_gradients_begin():
    gradients = np.random.default_rng(0).normal(size=(100, 50))
    gradients[0] = 0.0
    rms = adam_rms(gradients, 0.999)
    assert gradient_surprise(rms[1], 0.999, 2) == np.inf
    assert find_stale_moments(np.arange(100), rms, 0.999).empty
    assert len(find_stale_moments(np.arange(100), rms, 0.999, min_history=1)) == 1


def test_a_first_update_later_than_step_0_is_corrected_for():
    gradients = np.ones((60, 5))
    gradients[25] *= 2.31
    rms = adam_rms(gradients, 0.999)  # 2.31 is adam_rms of 2.07 there
    steps = np.arange(1000, 1060)
    assert find_stale_moments(steps, rms, 0.999).empty
    found = find_stale_moments(steps, rms, 0.999, first_update=1000)
    assert found["onset"].tolist() == [1025]
    assert found["height"][0] == pytest.approx(2.31, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_fed_in_parts_it_finds_the_same(seed):
    rng = np.random.default_rng(seed)
    rms = np.abs(rng.normal(1, 0.8, size=900))
    rms[rng.random(900) < 0.05] = np.nan
    steps = np.cumsum(rng.integers(1, 4, size=900))
    online = OnlineStaleMoments(0.95, first_update=5)
    cuts = np.sort(rng.integers(0, 900, size=12))
    parts = zip(np.split(steps, cuts), np.split(rms, cuts), strict=True)
    onsets = [onset for part in parts for onset in online.add(*part)]
    offline = find_stale_moments(steps, rms, 0.95, first_update=5)
    assert [onset.step for onset in onsets] == offline["onset"].tolist()
    assert len(onsets) > 5


def false_alarms(elements: int, beta2: float, common: float, tail: float, steps: int) -> int:
    rng = np.random.default_rng(elements)
    gradients = rng.standard_t(tail, size=(steps, elements)) if tail else rng.normal(
        size=(steps, elements)
    )  # fmt: skip
    gradients *= np.exp(common * rng.normal(size=(steps, 1)))
    return len(find_stale_moments(np.arange(steps), adam_rms(gradients, beta2), beta2))


@pytest.mark.lengthy
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_false_alarms_of_healthy_layers_are_those_the_docstring_states(beta2):
    """Hundreds of elements never alarm; a single one does: 2 % of a normal lie beyond 2.3."""
    assert false_alarms(100, beta2, 0.0, 0, 10_000) == 0
    assert false_alarms(1, beta2, 0.0, 0, 10_000) > 100
    assert false_alarms(100, beta2, 0.1, 0, 10_000) == 0
    assert 1 <= false_alarms(100, beta2, 0.4, 0, 10_000) <= 150


def test_bad_input_is_refused():
    steps, ones = np.arange(30), np.ones(30)
    with pytest.raises(ValueError, match=r"in 0\.\.10, the ceiling of beta2 0\.99, got 31"):
        find_stale_moments(steps, np.where(steps == 7, 31.0, 1.0), 0.99)
    with pytest.raises(ValueError, match="ceiling"):
        gradient_surprise(-1.0, 0.99)
    with pytest.raises(ValueError, match="beta2 must be between 0 and 1, got 1"):
        gradient_surprise(1.0, 1.0)
    with pytest.raises(ValueError, match="strictly increasing"):
        find_stale_moments([3, 3], [1, 1], 0.9)
    with pytest.raises(ValueError, match="threshold must be above 1"):
        find_stale_moments(steps, ones, 0.9, threshold=1.0)
    with pytest.raises(ValueError, match="merge"):
        find_stale_moments(steps, ones, 0.9, merge=-1)
    with pytest.raises(ValueError, match="min_history"):
        find_stale_moments(steps, ones, 0.9, min_history=0)
