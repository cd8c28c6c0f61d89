"""Optimizers inside others; each class has the structure of a real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.rundir import RunDir
from tests.monitor.toy import Toy, assert_whole, kinds


class Shell(torch.optim.Optimizer):
    """As accelerate's AcceleratedOptimizer: an Optimizer that never became one."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if self.scaler is None:
            return self.optimizer.step(closure)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Imitation:
    """As Lightning Fabric's: takes on the class of what it holds, and all else from there."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        self._optimizer = optimizer
        precision = type("Precision", (), {"scaler": scaler})()
        self._strategy = type("Strategy", (), {"precision": precision})()
        kind = type(optimizer)
        self.__class__ = type("Fabric" + kind.__name__, (type(self), kind), {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        scaler = self._strategy.precision.scaler  # type: ignore[attr-defined]
        if scaler is None:
            return self.optimizer.step(closure)
        scaler.step(self.optimizer)
        scaler.update()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class OldImitation(Imitation):
    """As Fabric's of Lightning 2.0, which copied what the optimizer had."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        super().__init__(optimizer, scaler)
        self.__dict__ |= {k: v for k, v in vars(optimizer).items() if k not in ("step",)}


class Unhooked(torch.optim.Optimizer):
    """As timm's Lookahead, which leaves out the constructor of its class."""

    def __init__(self, base_optimizer: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = {}
        self._optimizer_step_post_hooks: Any = {}
        self._base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.defaults = base_optimizer.defaults

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self._base_optimizer.step(closure)


SHELLS: list[Callable[[torch.optim.Optimizer], Any]] = [
    Shell, Imitation, OldImitation, Unhooked, lambda one: Shell(Shell(one)),
]  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_recorded_as_what_it_holds(shell: Any, tmp_path: Path) -> None:
    toy = Toy()
    inner = toy.optimizer
    toy.optimizer = shell(inner)
    with toy.monitor(tmp_path) as monitor:
        toy.steps(7, monitor)
        monitor.before_clipping(toy.optimizer)
        toy.optimizer.step()
    toy.losses.append(0.0)
    rows = stabkit.open_run(tmp_path).signals()
    assert np.unique(rows["step"]).tolist() == list(range(8))
    assert rows[["grad_norm", "update_norm", "adam_rms"]].notna().all(axis=None)
    assert kinds(tmp_path) == []
    assert not inner._optimizer_step_pre_hooks
    bare = Toy()
    bare.steps(7)
    assert toy.losses[:7] == bare.losses


@pytest.mark.parametrize("shell", [Shell, Imitation])
def test_the_scaler_of_a_shell_is_found(shell: Any, tmp_path: Path) -> None:
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    outer = shell(toy.optimizer, scaler)
    norms = []
    with stabkit.Monitor(toy.model, outer, tmp_path, full_every=1):
        for _ in range(3):
            toy.optimizer.zero_grad()
            loss = toy.model(torch.ones(4, 4)).square().mean()
            scaler.scale(loss).backward()
            grads = [p.grad for p in toy.model.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)) / 2**10)
            outer.step()
    run = stabkit.open_run(tmp_path)
    np.testing.assert_allclose(run.scalar("grad_norm_total"), norms, rtol=1e-5)
    assert run.scalar("grad_scale").tolist() == [2.0**10] * 3


class Other:
    def __init__(self, held: Any) -> None:
        self.mine = held

    def step(self) -> None: ...


def test_what_cannot_be_seen_is_refused_with_the_line_to_change(tmp_path: Path) -> None:
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu")
    for given, options, message in (
        (Other(toy.optimizer), {}, r"Other has no step hooks; pass optimizer\.mine"),
        (Other(None), {}, "Other has no step hooks; pass the torch.optim.Optimizer inside it"),
        (
            toy.optimizer,
            {"scaler": Other(scaler)},
            r"no torch.amp.GradScaler; pass scaler=scaler\.mine",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            stabkit.Monitor(toy.model, given, tmp_path / "run", **options, full_every=1)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization in two steps that the loop calls by their own names."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
        for p in self.parameters():
            assert p.grad is not None
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * (0.05 / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.parameters():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_the_two_steps_of_sam_are_one(base: Any, by_closure: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    sam = Sam(model.parameters(), base, lr=0.1)
    grads, moved, weights = [], [], []

    def norm(tensors: list[Tensor]) -> float:
        return float(torch.nn.utils.get_total_norm(tensors))

    with stabkit.Monitor(model, sam, tmp_path, flush_every=4, full_every=1) as monitor:
        for _ in range(10):
            x = torch.randn(4, 8)

            def backward(x: Tensor = x) -> Tensor:
                sam.zero_grad()
                loss: Tensor = model(x).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            before = [p.detach().clone() for p in model.parameters()]
            loss = backward()
            if by_closure:
                sam.step(backward)
            else:
                sam.first_step()
                backward()
                sam.second_step()
            monitor.log(loss=loss)
            weights.append(norm(before))
            grads.append(norm([p.grad for p in model.parameters() if p.grad is not None]))
            moved.append(norm([p - q for p, q in zip(model.parameters(), before, strict=True)]))
    run = stabkit.open_run(tmp_path)
    assert kinds(tmp_path) == []
    assert len(run.scalar("loss")) == 10
    np.testing.assert_allclose(run.scalar("grad_norm_total"), grads, rtol=1e-5)
    rows = run.signals()
    total = rows.groupby("step")[["update_norm", "param_norm"]].agg(lambda v: (v**2).sum() ** 0.5)
    if not by_closure:  # whose weights are looked at where its gradients are: at the other point
        np.testing.assert_allclose(total["param_norm"], weights, rtol=1e-5)
        # small differences of weights near 0.3: 6e-8 / 1e-2
        np.testing.assert_allclose(total["update_norm"], moved, rtol=1e-4)
    assert rows["adam_rms"].notna().all() == (base is torch.optim.AdamW)


class Silent(Sam):
    """Updates by itself, outside any step that could be seen."""

    def second_step(self) -> None:
        with torch.no_grad():
            for p in self.parameters():
                p.sub_(0.1 * p.grad)  # type: ignore[operator]


@pytest.mark.parametrize("logs", [3, 8])
def test_a_training_whose_steps_are_not_seen_says_so(
    logs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of the first interval, or else when it closes."""
    model = nn.Linear(8, 1)
    silent = Silent(model.parameters(), torch.optim.SGD, lr=0.1)
    with stabkit.Monitor(model, silent, tmp_path, flush_every=5, full_every=1) as monitor:
        for number in range(1, logs + 1):
            model(torch.ones(4, 8)).square().mean().backward()
            silent.second_step()
            monitor.log(loss=1.0)
            assert ("no step of Silent was seen" in caplog.text) == (number >= 5)
    (entry,) = [
        e for e in stabkit.open_run(tmp_path).log_entries() if e["kind"] == "monitor_failed"
    ]
    assert entry["name"] == "steps"
    assert entry["reason"].startswith(f"log was called {min(logs, 5)} times, and no step of Silent")
    assert caplog.text.count("no step of Silent was seen") == 1


def test_a_list_of_which_one_trains_another_model_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    pair = [torch.optim.Adam(net.parameters(), lr=0.1) for net in (generator, critic)]
    stabkit.Monitor(generator, pair, tmp_path / "half", full_every=1).close()
    groups, noticed = RunDir(tmp_path / "half").read_entries()
    assert (groups["kind"], noticed["kind"]) == ("param_groups", "noticed")
    reason = noticed["reason"]
    assert reason.startswith("Adam (number 1): 2 of its 2 parameters are not in the model")
    assert reason in caplog.text
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    stabkit.Monitor(both, pair, tmp_path / "whole", full_every=1).close()
    assert kinds(tmp_path / "whole") == []
    one = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.1)
    stabkit.Monitor(generator, one, tmp_path / "part", full_every=1).close()
    (entry,) = RunDir(tmp_path / "part").read_entries()
    assert entry["reason"].startswith("SGD: 2 of its 4 parameters are not in the model")


def test_optimizers_that_share_parameters_and_a_probe_that_nobody_asks_are_said(
    tmp_path: Path,
) -> None:
    model = nn.Linear(4, 4)
    pair = [torch.optim.Adam(model.parameters()), torch.optim.SGD([model.bias], lr=0.1)]
    stabkit.Monitor(model, pair, tmp_path / "pair").close()
    (reason,) = [e["reason"] for e in RunDir(tmp_path / "pair").read_entries() if "reason" in e]
    assert reason.startswith("SGD has 1 parameter of an optimizer before it in the list")
    probe = stabkit.Probe(torch.ones(2, 4))
    stabkit.Monitor(model, pair[0], tmp_path / "probe", probe=probe).close()
    (entry,) = RunDir(tmp_path / "probe").read_entries()
    assert "none of the signals looks at it" in entry["reason"]


def test_adafactor_beside_adam_keeps_the_moments_of_adam(tmp_path: Path) -> None:
    """Its eps is a pair."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    pair = [
        torch.optim.AdamW(model[0].parameters()), torch.optim.Adafactor(model[1].parameters()),
    ]  # fmt: skip
    with stabkit.Monitor(model, pair, tmp_path / "run", full_every=1):
        for _ in range(5):
            model(torch.ones(2, 4)).square().sum().backward()
            for optimizer in pair:
                optimizer.step()
                optimizer.zero_grad()
    rows = stabkit.open_run(tmp_path / "run").signals("adam_rms")
    known = rows.groupby("layer", observed=True)["adam_rms"].count()
    assert known.to_dict() == {"0": 5, "1": 0}


def test_before_clipping_of_a_foreign_optimizer_is_said(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        monitor.before_clipping(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
        toy.steps(3, monitor)
    assert kinds(tmp_path) == ["noticed"]
    assert_whole(tmp_path, toy)
