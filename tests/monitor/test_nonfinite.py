"""Where non-finite values began: what the log and the online event say of each beginning."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stabkit

BAD = 7


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 4)
        self.h = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.head = nn.Linear(4, 2)
        self.overflow: str | None = None  # a block whose output, or its gradient, is infinite

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for number, block in enumerate(self.h):
            x = torch.tanh(block(x))
            if number == 2 and self.overflow == "forward":
                x = x * math.inf
            if number == 2 and self.overflow == "backward" and x.requires_grad:
                x.register_hook(lambda grad: grad * math.inf)
        out: Tensor = self.head(x)
        return out


LAYERS = ["embed", "h.0", "h.1", "h.2", "h.3", "head"]


def weight(model: Blocks, optimizer: Any) -> None:
    model.h[2].weight.data[0, 0] = math.nan


def gradient(model: Blocks, optimizer: Any) -> None:
    assert model.h[1].bias.grad is not None
    model.h[1].bias.grad[0] = -math.inf


def rate(model: Blocks, optimizer: Any) -> None:
    """Spoil the update, of finite gradients."""
    optimizer.param_groups[0]["lr"] = math.inf


def forward(model: Blocks, optimizer: Any) -> None:
    model.overflow = "forward"


def backward(model: Blocks, optimizer: Any) -> None:
    model.overflow = "backward"


def train(
    folder: Path, spoil: Callable[[Blocks, Any], None], early: bool, **options: Any
) -> tuple[dict[str, Any], Any]:
    """Return the entry of the log and the online event; `early`: spoil before the forward pass."""
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: list[Any] = []
    with stabkit.Monitor(
        model, optimizer, folder, flush_every=4, **options, full_every=1
    ) as monitor:
        monitor.on("nonfinite", found.append)
        for step in range(20):
            if step == BAD and early:
                spoil(model, optimizer)
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().mean()
            loss.backward()
            if step == BAD and not early:
                spoil(model, optimizer)
            optimizer.step()
            monitor.log(loss=loss)
    (entry,) = [e for e in stabkit.open_run(folder).log_entries() if e["kind"] == "nonfinite"]
    (event,) = found
    return entry, event


@pytest.mark.parametrize(
    ("spoil", "early", "signal", "layers", "reached"),
    [
        (weight, True, "param_norm", ["h.2"], 6),
        (gradient, False, "grad_norm", ["h.1"], 1),
        (backward, True, "grad_norm", ["h.2", "h.1", "h.0", "embed"], 4),
        (forward, True, "loss", [], 6),
    ],
)
def test_what_was_not_finite_first(
    spoil: Any, early: bool, signal: str, layers: list[str], reached: int, tmp_path: Path
) -> None:
    entry, event = train(tmp_path, spoil, early)
    assert (entry["step"], entry["signal"], entry["layers"]) == (BAD, signal, layers)
    assert entry["reached"] == reached
    assert entry.get("names") == (["loss"] if signal == "loss" else None)
    assert (event.step, event.facts["signal"], event.facts["layers"]) == (BAD, signal, layers)
    assert event.layer == (layers[0] if layers else None)
    run = stabkit.open_run(tmp_path)
    assert run.scalar("nonfinite_layers")[BAD] == reached


def test_an_update_that_is_not_finite_is_one_step_before_its_gradients(tmp_path: Path) -> None:
    entry, event = train(tmp_path, rate, early=False)
    assert (entry["step"], entry["signal"], entry["layers"]) == (BAD, "update_norm", LAYERS)
    # online, gradients and loss are watched: they follow at the next step
    assert (event.step, event.facts["signal"]) == (BAD + 1, "param_norm")


@pytest.mark.lengthy
def test_activations_of_a_probe_tell_where_a_forward_broke(tmp_path: Path) -> None:
    options = {
        "probe": stabkit.Probe(view1=torch.ones(2, 4)), "probe_every": 1,
        "signals": ["basic", "attention"],
    }  # fmt: skip
    entry, event = train(tmp_path, forward, True, **options)
    # the third block's own output is finite, and multiplied behind it
    assert entry["signal"] == "output_rms"
    assert entry["layers"] == ["h.3", "head"]
    assert event.facts["layers"] == entry["layers"]


@pytest.mark.lengthy
@pytest.mark.parametrize("interval", [4, 50])
def test_an_overflow_that_stays_is_told_from_its_first_step(interval: int, tmp_path: Path) -> None:
    """Ten skipped steps are waited for; they are not when it began."""
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    found: list[Any] = []
    with stabkit.Monitor(
        model, optimizer, tmp_path, scaler=scaler, flush_every=interval, full_every=1
    ) as monitor:
        monitor.on("nonfinite", found.append)
        for step in range(60):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(3, 4)).square().mean()).backward()
            if 5 <= step < 8 or step >= 30:  # three are how a scaler finds its scale
                assert model.h[1].weight.grad is not None
                model.h[1].weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
    log = stabkit.open_run(tmp_path).log_entries()
    (entry, confirmed) = sorted(log, key=lambda one: one["kind"], reverse=True)
    assert (entry["step"], entry["layers"], entry["reached"]) == (30, ["h.1"], 1)
    assert (confirmed["kind"], confirmed["step"]) == ("confirmed", 30)
    assert [(e.step, e.layer) for e in found] == [(30, "h.1")]


def test_gradients_that_stay_nan_are_lost_to_the_end_and_are_no_blank(tmp_path: Path) -> None:
    """The table holds their NaN, so nothing is missing."""
    model = Blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        for step in range(60):
            optimizer.zero_grad()
            model(torch.ones(8, 4)).square().mean().backward()
            if step == BAD:
                assert model.head.bias.grad is not None
                model.head.bias.grad[0] = math.nan
            optimizer.step()
    run = stabkit.open_run(tmp_path)
    (lost,) = run.events("nonfinite").itertuples()
    assert (lost.onset, lost.end) == (BAD, monitor.step - 1)
    assert run.diagnosis().gaps() == []
