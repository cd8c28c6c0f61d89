"""Where a non-finite stretch begins and ends, and which bar a spike must pass."""

import numpy as np
import pytest

from stabkit.detect.nonfinite import nonfinite_stretches
from stabkit.detect.spikes import ONLINE_SPIKE_BAR, spike_bar


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("within", [False, True])
def test_stretches_are_those_of_a_plain_loop(seed: int, within: bool) -> None:
    bad = np.random.default_rng(seed).random(seed) < 0.5
    firsts, lasts, before = ([-1] if within else []), [], within
    for i, flag in enumerate(bad.tolist()):
        if flag and not before:
            firsts.append(i)
        if before and not flag:
            lasts.append(i - 1)
        before = flag
    lasts += [len(bad) - 1] if before else []
    found = nonfinite_stretches(bad, within)
    assert [part.tolist() for part in found] == [firsts, lasts]


def test_the_bar_of_a_spike_grows_by_one_for_ten_times_the_steps() -> None:
    assert [spike_bar(n) for n in (0, 1, 1000, 10_000, 1_000_000)] == [6, 6, 6, 7, 9]
    assert spike_bar(1_000_000) == ONLINE_SPIKE_BAR
