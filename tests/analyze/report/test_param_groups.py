"""The report names the parameter group in which a layer is trained, from a finished folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import stabkit
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.param_groups import groups_of, rates_of, tell_groups
from stabkit.rundir import RunDir
from tests.analyze.conftest import STEPS, diagnosed, plant_loop

GPT = ["wte", "h.0", "h.1", "h.2", "ln_f"]


def group(number: int, elements: dict[str, int], **settings: object) -> dict[str, object]:
    return {"group": number, "optimizer": "AdamW", "settings": settings, "elements": elements}


TWO = [
    group(0, {"h.2": 990, "wte": 50}, lr=0.0, weight_decay=0.1, betas=[0.9, 0.95], eps=1e-8),
    group(1, {"h.2": 10, "ln_f": 4}, lr=3e-4, weight_decay=0.0, betas=[0.9, 0.99], eps=1e-8),
]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return a run whose groups have their own rates; that of the first was 0 at the start."""
    of_second: dict[str, Any] = {"lr.1": np.full(STEPS, 1e-4), "beta2.1": 0.99}
    folder = plant_loop(
        tmp_path / "runs" / "a", GPT, "h.2", warmup=50, lr=6e-4, beta2=0.95, **of_second
    )
    RunDir(folder).append_entry("param_groups", 0, groups=TWO)
    return folder


@pytest.mark.usefixtures("undrawn")
def test_where_it_began_names_the_groups_and_the_remedies_take_their_values(two: Path) -> None:
    report = make_report(diagnosed(two.parent))
    assert report.began == (
        "in h.2 at step 300, with a gradient burst; h.2 is 99 % in param group 0 "
        "(lr 0.0006, weight_decay 0.1, betas [0.9, 0.95]) and 1 % in param group 1 "
        "(lr 0.0001, weight_decay 0, betas [0.9, 0.99])"
    )
    lines = "\n".join(advice.lines for advice in report.advice)
    assert "lr=0.0003  # where the optimizer is made; half of the largest on record" in lines
    assert "half of the largest on record, 0.0006, of param group 0" in lines


@pytest.mark.usefixtures("undrawn")
def test_the_values_are_those_of_the_group_in_which_it_began(two: Path) -> None:
    RunDir(two).append_entry(
        "param_groups", 100, groups=[group(0, {"wte": 5}, lr=1.0), group(1, {"h.2": 9}, lr=2.0)]
    )
    report = make_report(diagnosed(two.parent))
    assert report.began.endswith("; h.2 is in param group 1 (lr 0.0001)")
    lines = "\n".join(advice.lines for advice in report.advice)
    assert "lr=5e-05" in lines
    assert "β2 was 0.99, of param group 1" in lines


@pytest.mark.parametrize(
    "damaged",
    [None, "text", [1, 2], [{"group": 0}], [group(0, {"h.2": 1}) | {"settings": None}]],
)
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_entry_tells_nothing(tmp_path: Path, damaged: object) -> None:
    folder = plant_loop(tmp_path / "runs" / "a", GPT, burst="h.2", lr=6e-4)
    RunDir(folder).append_entry("param_groups", 0, groups=damaged)
    assert make_report(diagnosed(folder.parent)).began == (
        "in h.2 at step 300, with a gradient burst"
    )


def test_the_rate_of_a_group_is_that_of_the_first_where_it_is_the_same() -> None:
    scalars = pd.DataFrame(
        [(0, "lr", 1.0), (0, "lr.1", 3.0), (1, "lr", 2.0)], columns=["step", "name", "value"]
    )
    assert rates_of(scalars, 0).tolist() == [1.0, 2.0]
    assert rates_of(scalars, 1).tolist() == [3.0, 2.0]
    assert rates_of(scalars, 2).tolist() == [1.0, 2.0]


def trained(folder: Path, *optimizers: torch.optim.Optimizer, model: nn.Module) -> None:
    with stabkit.Monitor(model, list(optimizers), folder) as monitor:
        for _ in range(3):
            loss = model(torch.ones(2, 4)).square().mean()
            loss.backward()
            for one in optimizers:
                one.step()
            monitor.log(loss=loss)


def test_a_monitor_records_the_groups_of_its_optimizer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.05},
            {"params": others, "weight_decay": 0.0, "name": "no decay", "lr": torch.tensor(2e-4)},
        ],
        lr=3e-4,
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    trained(tmp_path / "runs" / "a", optimizer, model=model)
    run = diagnosed(tmp_path / "runs").items[0]
    groups = groups_of(run, "0", 0)
    assert tell_groups("layer 0", groups) == (
        "layer 0 is 80 % in param group 0 (lr 0, weight_decay 0.05) "
        "and 20 % in param group 1 ('no decay', lr 0, weight_decay 0)"
    )


def test_two_optimizers_are_told_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    both = [
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        torch.optim.AdamW(model[1].parameters(), lr=1e-3),
    ]
    trained(tmp_path / "runs" / "a", *both, model=model)
    run = diagnosed(tmp_path / "runs").items[0]
    told = tell_groups("layer 1", groups_of(run, "1", 2))
    assert told == "layer 1 is in param group 1 (AdamW, lr 0.001, weight_decay 0.01)"


def test_nothing_is_recorded_of_one_group_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    trained(tmp_path / "a", torch.optim.AdamW(model.parameters()), model=model)
    assert RunDir(tmp_path / "a").read_entries() == []
