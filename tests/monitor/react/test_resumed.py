"""What was confirmed before a resume is neither forgotten nor told again."""

import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.monitor.react.events import OnlineEvent
from stabkit.rundir import RunDir

SPIKE, LOST, DIP = 200, 230, (272, 295)  # steps
CLOSED, LAST = 280, 340  # the dip is confirmed at the close, which is too early to be certain


def train(folder: Path, first: int, last: int, killed: bool = False) -> list[OnlineEvent]:
    """Train from step `first` to `last`, and return what was told meanwhile."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    told: list[OnlineEvent] = []
    labels = np.zeros(500, dtype=int)
    with stabkit.Monitor(
        model, optimizer, folder, flush_every=5, first_step=first or None
    ) as monitor:
        for kind in ("spike", "nonfinite", "dip"):
            monitor.on(kind, told.append)
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            loss = model(torch.randn(64, 3, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                if step == SPIKE and parameter.grad is not None:
                    parameter.grad *= 100
            optimizer.step()
            monitor.log(loss=math.nan if step == LOST else loss)
            share = 0.3 if DIP[0] <= step < DIP[1] else 0.6
            monitor.log_eval("val_acc", np.arange(500) >= 500 * share, labels, chance=0.1)
        if killed:
            monitor.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return told


def told_of(events: list[OnlineEvent]) -> dict[str, int]:
    return dict(Counter(event.kind for event in events))


def counted(folder: Path) -> dict[str, int]:
    status = RunDir(folder).read_status()
    assert status is not None
    return status.events


def test_what_a_closed_run_confirmed_is_known_and_not_told_again(tmp_path: Path) -> None:
    before = train(tmp_path, 0, CLOSED)
    assert told_of(before) == {"spike": 1, "nonfinite": 1, "dip": 1}
    assert counted(tmp_path) == told_of(before)
    assert train(tmp_path, CLOSED, LAST) == []
    assert counted(tmp_path) == told_of(before)
    assert train(tmp_path, LAST, LAST + 5) == [], "nor after a second resume"
    assert counted(tmp_path) == told_of(before)


@pytest.mark.parametrize("again_from", [CLOSED, SPIKE + 6])
def test_what_a_killed_run_confirmed_is_known_and_not_told_again(
    tmp_path: Path, again_from: int
) -> None:
    call = "from pathlib import Path; from tests.monitor.react.test_resumed import train; "
    call += f"train(Path({str(tmp_path)!r}), 0, {CLOSED}, killed=True)"
    done = subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = {kind for kind, at in (("spike", SPIKE), ("nonfinite", LOST)) if at < again_from}
    after = train(tmp_path, again_from, LAST)
    assert set(told_of(after)) == {"spike", "nonfinite", "dip"} - kept
    assert counted(tmp_path) == {"spike": 1, "nonfinite": 1, "dip": 1}


def test_the_log_has_what_was_confirmed(tmp_path: Path) -> None:
    train(tmp_path, 0, CLOSED)
    entries = {e["cause"]: e for e in RunDir(tmp_path).read_entries() if e["kind"] == "confirmed"}
    assert {kind: (entry["step"], entry["onset"]) for kind, entry in entries.items()} == {
        "spike": (SPIKE, SPIKE), "nonfinite": (LOST, LOST), "dip": (CLOSED - 1, DIP[0]),
    }  # fmt: skip
    assert entries["spike"]["signal"] == "grad_norm"
    assert entries["nonfinite"]["loss"] is True
