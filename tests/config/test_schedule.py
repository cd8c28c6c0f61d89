"""The learning rate over the steps."""

import pytest

from stabkit.config import load_config
from stabkit.config.schedule import lr_at


def test_the_rate_stays_constant_after_the_warm_up_where_asked() -> None:
    config = load_config("tiny", ["optim.schedule=constant", "optim.lr_rule=none"])
    rates = [lr_at(step, 500, config.optim, 64) for step in range(500)]
    assert rates[:31] == pytest.approx([0.004 * step / 30 for step in range(31)])
    assert set(rates[30:]) == {0.004}
    # The decay is spread over another sum of rates, so that its total stays the same.
    total = [load_config("tiny", ["optim.decay_total=2", f"optim.schedule={name}"]).optim
             for name in ("constant", "cosine")]  # fmt: skip
    for optim in total:
        sums = sum(lr_at(step, 500, optim, 64) for step in range(500)) * optim.weight_decay
        assert sums == pytest.approx(2, rel=1e-5)
