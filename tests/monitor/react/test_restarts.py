"""Falls of an accuracy at warm restarts of the optimizer's learning rate are no dips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit

CYCLE, EVERY = 100, 4


def train(
    folder: Path, first: int, last: int, restarts: bool = True, hole: int = -100
) -> list[int]:
    """Return the steps of the dips that were told; `hole`: the step of one at no restart."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told: list[int] = []
    labels = np.zeros(500, dtype=int)
    with stabkit.Monitor(model, optimizer, folder, first_step=first or None) as monitor:
        monitor.on("dip", lambda event: told.append(event.step))
        for step in range(first, last):
            high = 0.5 * (1 + np.cos(np.pi * (step % CYCLE) / CYCLE))
            optimizer.param_groups[0]["lr"] = 0.1 * high + 1e-4 if restarts else 0.1
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if step % EVERY == EVERY - 1:
                fall = 0.15 * max(1 - 3 * (step % CYCLE) / CYCLE, 0)
                share = 0.8 - (fall if step >= CYCLE else 0)
                share -= 0.3 * (hole <= step < hole + 24)
                monitor.log_eval("val_acc", np.arange(500) >= 500 * share, labels, chance=0.1)
    return told


def test_dips_are_told_where_no_restart_explains_them(tmp_path: Path) -> None:
    assert len(train(tmp_path / "steady", 0, 360, restarts=False)) == 3
    assert train(tmp_path / "restarts", 0, 360) == []
    (onset,) = train(tmp_path / "hole", 0, 360, hole=252)
    assert abs(onset - 252) <= EVERY


@pytest.mark.parametrize("at", [212, 250])
def test_a_resumed_training_knows_the_restarts_before(tmp_path: Path, at: int) -> None:
    assert train(tmp_path, 0, at) == []
    assert train(tmp_path, at, 360) == []
