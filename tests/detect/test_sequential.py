import numpy as np
import pytest
from scipy import stats

from tests.detect.sequential import alternative, rarely


@pytest.mark.parametrize(("rate", "trials"), [(0.01, 150), (0.05, 400)])
def test_it_errs_as_seldom_as_it_says(rate: float, trials: int) -> None:
    rng = np.random.default_rng(0)
    for true, passes, allowed in ((rate, False, 0.001), (alternative(rate, trials), True, 0.05)):
        errors = sum(
            rarely(iter(rng.random(trials) < true), rate, trials) is passes for _ in range(1000)
        )
        assert errors <= stats.binom.ppf(0.999, 1000, allowed)


def test_it_stops_once_it_has_decided() -> None:
    healthy, noisy = iter([False] * 150), iter([True] * 150)
    assert rarely(healthy, 0.01, 150)
    assert 100 < len(list(healthy)) < 110
    assert not rarely(noisy, 0.01, 150)
    assert len(list(noisy)) > 140
