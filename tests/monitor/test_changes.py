"""Models, optimizers and loops that change while they are recorded, or log at another moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stabkit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).relu())
        return out


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    """Clear what is in the model: the old head's gradient stays."""
    for _ in range(count):
        model.zero_grad()
        model(torch.ones(5, 4)).square().mean().backward()
        optimizer.step()


def add_group(model: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": list(model.head.parameters())})


def swap_members(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """As many as before: only which they are is new."""
    optimizer.param_groups[0]["params"][2:] = list(model.head.parameters())


def forget(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """Leave the new head untrained."""
    optimizer.param_groups[0]["params"][2:] = []


def notices(folder: Path) -> list[tuple[int, str]]:
    events = stabkit.open_run(folder).log_entries()
    return [(e["step"], e["reason"]) for e in events if e["kind"] == "noticed"]


@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.parametrize("follow", [add_group, swap_members, forget])
def test_a_replaced_head_is_no_longer_recorded(
    follow: Callable[[Net, torch.optim.Optimizer], None],
    as_module: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Net()
    optimizer = sgd(model)
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=2, full_every=1):
        steps(model, optimizer)
        if as_module:
            model.head = nn.Linear(8, 5)
        else:
            model.head.weight = nn.Parameter(torch.ones(5, 8))
            model.head.bias = nn.Parameter(torch.ones(5))
        follow(model, optimizer)
        steps(model, optimizer)
    rows = stabkit.open_run(tmp_path).signals().set_index(["layer", "step"])
    for signal in ("grad_norm", "grad_max", "param_norm", "update_norm", "zero_count"):
        assert rows.loc["head"][signal].notna().tolist() == [True] * 3 + [False] * 3
        assert rows.loc["body"][signal].notna().all()
    assert notices(tmp_path) == [
        (3, "head.weight, head.bias: no longer in the model, and recorded as null from here on"),
        (
            3,
            "head.weight, head.bias: new in the model, and not recorded: for that close this "
            "Monitor and make another, with first_step",
        ),
    ]
    assert caplog.text.count("head.weight") == 2


def test_a_new_module_is_named(tmp_path: Path) -> None:
    model = Net()
    optimizer = sgd(model)
    with stabkit.Monitor(model, optimizer, tmp_path, full_every=1):
        steps(model, optimizer, 1)
        model.head = nn.Sequential(model.head, nn.Linear(2, 2))
        steps(model, optimizer, 2)
    rows = stabkit.open_run(tmp_path).signals()
    assert rows["grad_norm"].notna().all()  # the old head goes on within the new one
    ((step, said),) = notices(tmp_path)
    assert step == 1
    assert said.startswith("head.1.weight, head.1.bias: new in the model")


def test_a_gradient_that_nobody_clears_or_writes_is_not_recorded(tmp_path: Path) -> None:
    """A head that is frozen and left out of the optimizer keeps its last gradient."""
    model = Net()
    optimizer = sgd(model)
    with stabkit.Monitor(model, optimizer, tmp_path, full_every=1):
        for step in range(4):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).square().mean().backward()
            optimizer.step()
            if step == 1:
                model.head.requires_grad_(False)
                optimizer.param_groups[0]["params"][2:] = []
    rows = stabkit.open_run(tmp_path).signals().set_index(["layer", "step"])
    head = rows.loc["head"]
    assert head["grad_norm"].notna().tolist() == [True, True, False, False]
    assert head["param_norm"].notna().all()
    assert notices(tmp_path) == []


def test_a_group_that_is_added_is_recorded(tmp_path: Path) -> None:
    model = Net()
    model.head.requires_grad_(False)
    optimizer = sgd(model.body)
    with stabkit.Monitor(model, optimizer, tmp_path, full_every=1):
        steps(model, optimizer, 2)
        model.head.requires_grad_(True)
        add_group(model, optimizer)
        steps(model, optimizer, 2)
    head = stabkit.open_run(tmp_path).signals().set_index(["layer", "step"]).loc["head"]
    assert head["update_norm"].fillna(0).gt(0).tolist() == [False, False, True, True]
    assert notices(tmp_path) == []


def test_a_replaced_optimizer_is_named(tmp_path: Path) -> None:
    model = Net()
    with stabkit.Monitor(model, sgd(model), tmp_path, full_every=1) as monitor:
        steps(model, monitor._recording.attachment.optimizers[0], 2)
        steps(model, torch.optim.AdamW(model.parameters()), 3)
    ((step, said),) = notices(tmp_path)
    assert step == 2
    assert said.startswith("AdamW steps 4 of the recorded parameters and is no optimizer of the")


def test_other_optimizers_that_step_between_ours_are_nobodys_business(tmp_path: Path) -> None:
    model, other = Net(), Net()
    mine, second, foreign = sgd(model), sgd(model), sgd(other)
    with stabkit.Monitor(model, mine, tmp_path, full_every=1):
        for _ in range(4):
            steps(model, mine, 1)
            steps(model, second, 1)
            steps(other, foreign, 2)
    assert notices(tmp_path) == []


class Wrapper(torch.optim.Optimizer):
    """Steps another optimizer, as Lookahead does."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure: Any = None) -> None:
        self.inner.step(closure)


@pytest.mark.parametrize("watch_inner", [True, False])
def test_an_optimizer_within_another_is_one(watch_inner: bool, tmp_path: Path) -> None:
    model = Net()
    outer = Wrapper(sgd(model))
    with stabkit.Monitor(model, outer.inner if watch_inner else outer, tmp_path, full_every=1):
        steps(model, outer, 4)
    assert notices(tmp_path) == []


@pytest.mark.parametrize(
    ("order", "skipped", "said_at"),
    [("after", None, None), ("before", None, 1), ("twice", None, 1), ("after", 2, 2)],
)
def test_a_value_that_replaces_another_is_said(
    order: str,
    skipped: int | None,
    said_at: int | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Net()
    optimizer = sgd(model)
    with stabkit.Monitor(model, optimizer, tmp_path, full_every=1) as monitor:
        for number in range(5):
            if order == "before":
                monitor.log(loss=float(number), other=1.0)
            if number != skipped:
                steps(model, optimizer, 1)
            if order != "before":
                monitor.log(loss=float(number), other=1.0)
            if order == "twice":
                monitor.log(loss=float(number))
    found = notices(tmp_path)
    assert [step for step, _ in found] == ([] if said_at is None else [said_at])
    assert caplog.text.count("log: loss came twice for one step") == len(found)
    if said_at is None:
        loss = stabkit.open_run(tmp_path).scalar("loss")
        assert loss.to_dict() == {i: float(i) for i in range(5)}
