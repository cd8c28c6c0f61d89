"""Optimizers that keep an `exp_avg_sq` of their own kind, each with the state of the real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import Adopt
from torch import Tensor, nn

import stabkit
from stabkit.monitor.measure.adam_like import why_not_adam
from stabkit.train.optim.stable_adamw import StableAdamW


class Plain(torch.optim.Optimizer):
    """Adam, by its paper; what it keeps and counts is for subclasses to change."""

    in_group = False  # where the steps are counted

    def __init__(self, params: Any, lr: float = 1e-2, betas: Any = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8})

    def kept(self, p: Tensor) -> dict[str, Any]:
        return {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            counted = group if self.in_group else {}
            counted["step"] = counted.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(self.kept(p))
                    if not self.in_group:
                        state["step"] = 0
                if not self.in_group:
                    state["step"] += 1
                self.update(p, state, group)

    def update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert p.grad is not None
        beta1, beta2 = group["betas"][:2]
        t = state.get("step", group.get("step"))
        if "exp_avg" in state:
            state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt().add_(group["eps"])
        p.sub_(state.get("exp_avg", p.grad) / (1 - beta1**t) / root, alpha=group["lr"])


class Counting(Plain):
    in_group = True


class Ahead(Plain):
    """Adam within timm's Lookahead, which keeps its slow weights in the same state."""

    def kept(self, p: Tensor) -> dict[str, Any]:
        return super().kept(p) | {"lookahead_slow_buff": p.clone(), "seen": 3, "note": None}


class ScheduleFree(Plain):
    """Counts in `k`, keeps no first moment."""

    def kept(self, p: Tensor) -> dict[str, Any]:
        return {"z": p.clone(), "exp_avg_sq": torch.zeros_like(p)}


class Uncounted(Plain):
    def update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super().update(p, state, group)
        state["k"] = state.pop("step")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for state in self.state.values():
            state["step"] = state.pop("k")
        super().step()


class Prodigy(Plain):
    """Multiplies the gradient by an estimate `d` that begins at 1e-6."""

    def kept(self, p: Tensor) -> dict[str, Any]:
        return super().kept(p) | {"s": torch.zeros_like(p), "p0": p.clone()}

    def update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["exp_avg_sq"].mul_(1e12)
        super().update(p, state, group)
        state["exp_avg_sq"].mul_(1e-12)


class Soap(Plain):
    """Keeps its moments in another basis."""

    def kept(self, p: Tensor) -> dict[str, Any]:
        return super().kept(p) | {"GG": [torch.eye(len(p))], "Q": None}


class ThreeBetas(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params, betas=(0.9, 0.99, 0.999))


def record(folder: Path, make: Any) -> tuple[stabkit.Run, list[float], list[str], int]:
    """Return the run, Adam's RMS by its formula, what was noticed, and the stale moments."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = make(model.parameters())
    v = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    expected, stale = [], []
    with stabkit.Monitor(model, optimizer, folder, flush_every=10, full_every=1) as monitor:
        monitor.on("stale_moments", stale.append)
        for t in range(1, 121):
            optimizer.zero_grad()
            x = torch.randn(16, 6)
            (model(x) - x[:, :2]).square().mean().backward()
            grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
            v = [0.99 * a + 0.01 * g * g for a, g in zip(v, grads, strict=True)]
            whole = torch.cat(
                [(g * g / (a / (1 - 0.99**t)).clamp(min=1e-16)).flatten()
                 for a, g in zip(v[:2], grads[:2], strict=True)]
            )  # fmt: skip
            expected.append(float(whole.mean().sqrt()))
            optimizer.step()
    run = stabkit.open_run(folder)
    said = [entry["reason"] for entry in run.log_entries() if entry["kind"] == "noticed"]
    return run, expected, said, len(stale)


def adam_rms(run: stabkit.Run, layer: str) -> Any:
    rows = run.signals("adam_rms")
    return rows[rows["layer"] == layer]["adam_rms"].to_numpy()


@pytest.mark.lengthy
@pytest.mark.parametrize("make", [Plain, Counting, Ahead])
def test_adams_that_nobody_has_heard_of_are_adams(make: Any, tmp_path: Path) -> None:
    run, expected, said, _ = record(tmp_path, make)
    assert said == []
    # float32 moments, updated 120 times
    np.testing.assert_allclose(adam_rms(run, "0"), expected, rtol=1e-4)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (ScheduleFree, "it keeps z beside exp_avg_sq"),
        (Uncounted, "it does not count the steps of its moments"),
        (Prodigy, "it keeps s, p0 beside exp_avg_sq"),
        (Soap, "it keeps GG beside exp_avg_sq"),
        (ThreeBetas, "its betas are 3, and not Adam's two"),
        (lambda p: Adopt(p, lr=1e-3), "Adopt has a second moment of its own"),
    ],
)
def test_another_second_moment_is_null_and_no_alarm(make: Any, why: str, tmp_path: Path) -> None:
    run, _, said, stale = record(tmp_path, make)
    assert np.isnan(adam_rms(run, "0")).all()
    assert stale == 0
    (reason,) = said
    assert why in reason
    assert reason.startswith("adam_rms and stale_moments are of Adam's second moment")
    assert run.signals("grad_norm")["grad_norm"].notna().all()


def test_a_parameter_without_dimensions_is_told_apart_too() -> None:
    p = nn.Parameter(torch.tensor(1.0))
    p.grad = torch.tensor(1.0)
    for make, is_adam in ((torch.optim.NAdam, True), (Ahead, True), (Prodigy, False)):
        optimizer = make([p])  # type: ignore[operator]
        optimizer.step()
        why = why_not_adam(optimizer, optimizer.param_groups[0], optimizer.state[p], p)
        assert (why == "") == is_adam


@pytest.mark.lengthy
def test_moments_that_are_corrected_as_they_are_made_are_not_corrected_again(
    tmp_path: Path,
) -> None:
    run, expected, said, _ = record(
        tmp_path, lambda p: StableAdamW(p, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    )
    assert said == []
    np.testing.assert_allclose(adam_rms(run, "0"), expected, rtol=1e-4)
