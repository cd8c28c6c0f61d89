"""Where a non-finite stretch begins and ends."""

import numpy as np
import pytest

from stabkit.detect.nonfinite import nonfinite_stretches, where_it_began


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


def flags(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(4), numbers)


@pytest.mark.parametrize(
    ("bad", "forward", "loss", "expected"),
    [
        ({"grad_norm": flags(0, 1, 2, 3), "param_norm": flags(2)}, (), True, ("param_norm", [2])),
        ({"grad_norm": flags(0, 1, 2, 3), "rms": flags(2, 3)}, ("rms",), True, ("rms", [2, 3])),
        ({"grad_norm": flags(0, 1, 2, 3), "rms": flags()}, ("rms",), True, ("loss", [])),
        ({"grad_norm": flags(0, 1)}, (), False, ("grad_norm", [1, 0])),
        ({"nonfinite_count": flags(3), "grad_norm": flags()}, (), False, ("grad_norm", [3])),
        ({"update_norm": flags(0, 3), "grad_norm": flags()}, (), False, ("update_norm", [0, 3])),
        ({}, (), True, ("loss", [])),
    ],
)
def test_what_comes_first_in_a_step_is_where_it_began(
    bad: dict[str, np.ndarray],
    forward: tuple[str, ...],
    loss: bool,
    expected: tuple[str, list[int]],
) -> None:
    assert where_it_began(bad, forward, loss) == expected
