import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.learning_rate import warmup_of


@pytest.mark.parametrize(
    ("rates", "steps"),
    [
        (np.linspace(0.01, 1, 11), 100),
        (np.geomspace(1e-6, 1e-3, 21), 200),
        (np.repeat([0.2, 0.4, 0.6, 1.0, 0.9], 5), 150),
        ([0.1, 1.0, 1.0], 10),
        ([1.0, 0.5, 0.2], 0),
        ([], None),
        # jumps, and a cycle that goes higher later: no warm-up
        (np.repeat([0.05, 5.0], 30), 0),
        ([0.9985, 0.9985, 0.9992, 1.0], 0),  # it hardly rises
        ([0.9985, 0.9992, 1.0], 0),
        ([*np.linspace(1, 0.1, 30), *np.linspace(2, 0.1, 30)], 0),
    ],
)
def test_a_warm_up_rises_from_the_first_steps_on(rates: list[float], steps: int | None) -> None:
    found = warmup_of(pd.Series(rates, index=10 * np.arange(len(rates)), dtype=float))
    assert found == steps
