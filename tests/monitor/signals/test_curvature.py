"""Curvature of the probe's loss against explicit Hessians and against steps that diverge."""

import gc
import math
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim.lamb import Lamb
from torch import Tensor, nn
from torch.func import functional_call

from stabkit.monitor.layers import layer_of
from stabkit.monitor.probe.probe import Probe, ProbePass
from stabkit.monitor.signals.curvature import (
    GradientSharpness,
    PreconditionedSharpness,
    StepSharpness,
)
from stabkit.monitor.signals.signal import ProbeSignal
from stabkit.monitor.signals.stability import bearing_of_adam, owners
from stabkit.train.optim.stable_adamw import StableAdamW

Loss = Callable[[nn.Module], Tensor]
ALL = (GradientSharpness, StepSharpness, PreconditionedSharpness)


def look(model: nn.Module, loss: Loss, *optimizers: torch.optim.Optimizer) -> ProbePass:
    return ProbePass(model, Probe(None, loss=loss), layer_of, optimizers)


def measure(
    signal: ProbeSignal, model: nn.Module, loss: Loss, *optimizers: torch.optim.Optimizer
) -> Any:
    return signal.measure(look(model, loss, *optimizers))


def small_model() -> tuple[nn.Module, Loss]:
    """31 parameters in float64, and a loss that is not convex."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (8,), generator=generator)
    return model, lambda m: nn.functional.cross_entropy(m(inputs), labels)


def train(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def hessian(model: nn.Module, loss: Loss) -> tuple[Tensor, Tensor]:
    """[n], [n, n]: gradient and explicit Hessian, parameters in order."""
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in named.values()])
        values = {
            name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)
        }
        call = nn.Module.__new__(nn.Module)
        nn.Module.__init__(call)
        call.forward = lambda *args: functional_call(model, values, args)
        return loss(call)

    gradient = torch.autograd.functional.jacobian(of, flat)
    return gradient, torch.autograd.functional.hessian(of, flat)


def adam_diagonal(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    """[n] P / lr, element by element as Adam's own step divides, momentum's correction included."""
    parts = []
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            vhat = optimizer.state[p]["exp_avg_sq"] / (1 - beta2**step)
            root = (vhat.sqrt() + group["eps"]) * (1 - beta1**step)
            parts.append((p, root.reshape(-1) / group["lr"]))
    of = dict(parts)
    return torch.cat([of[p] for p in model.parameters()])


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 3.8),
        ({"momentum": 0.9, "dampening": 0.5}, 7.6),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
    ],
)
def test_gradient_sharpness_is_that_of_the_explicit_hessian(
    settings: dict[str, float], limit: float
) -> None:
    model, loss = small_model()
    gradient, full = hessian(model, loss)
    expected = gradient @ full @ gradient / (gradient @ gradient) * 0.3 / limit
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, **settings)
    # float64 throughout: rounding of a few hundred operations
    torch.testing.assert_close(
        measure(GradientSharpness(), model, loss, optimizer), expected, rtol=1e-10, atol=0
    )


def test_gradient_sharpness_of_groups_is_along_their_common_step() -> None:
    model, loss = small_model()
    gradient, full = hessian(model, loss)
    rates = torch.tensor([0.1] * 16 + [0.7] * 15, dtype=torch.float64)
    step = rates * gradient
    expected = step @ full @ step / (step @ (step / rates)) / 2
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        torch.optim.SGD(model[2].parameters(), lr=0.7),
    ]
    torch.testing.assert_close(
        measure(GradientSharpness(), model, loss, *optimizers), expected, rtol=1e-10, atol=0
    )


@pytest.mark.lengthy
@pytest.mark.parametrize("step", [3, 80])
def test_adams_signals_are_those_of_the_explicit_hessian(step: int) -> None:
    model, loss = small_model()
    groups = [
        {"params": model[2].parameters(), "lr": 1e-3},
        {"params": model[0].parameters(), "lr": 4e-3, "betas": (0.8, 0.99)},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    train(model, loss, optimizer, step)
    gradient, full = hessian(model, loss)
    beta1 = torch.tensor([0.8] * 16 + [0.9] * 15, dtype=torch.float64)
    edge = adam_diagonal(model, optimizer, step) * (2 + 2 * beta1) / (1 - beta1)
    direction = gradient / edge
    expected = direction @ full @ direction / (direction @ (edge * direction))
    torch.testing.assert_close(
        measure(StepSharpness(), model, loss, optimizer), expected, rtol=1e-10, atol=0
    )
    largest = torch.linalg.eigvals(full / edge[:, None]).real.max()
    signal, found = PreconditionedSharpness(), []
    for _ in range(60):
        found.append(measure(signal, model, loss, optimizer))
    torch.testing.assert_close(found[-1], largest, rtol=1e-8, atol=0)
    rises = torch.stack(found).diff()
    assert (rises >= -1e-12 * largest).all()  # a lower bound that only rises while nothing moves
    matrix = full / edge.sqrt() / edge.sqrt()[:, None]
    unit = nn.functional.normalize(gradient / edge.sqrt(), dim=0)
    span, _ = torch.linalg.qr(torch.stack([unit, matrix @ unit], dim=1))
    first = torch.linalg.eigvalsh(span.T @ matrix @ span).max()
    torch.testing.assert_close(found[0], first, rtol=1e-10, atol=0)
    assert found[0] >= expected
    assert found[0] < 0.999 * largest  # the first is too low, as its documentation says


@pytest.mark.lengthy
def test_the_limit_of_one_adam_is_38_over_its_rate() -> None:
    model, loss = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, loss, optimizer, 400)  # 0.9^400: momentum's correction is gone
    gradient, full = hessian(model, loss)
    diagonal = adam_diagonal(model, optimizer, 400) * 1e-3
    u = gradient / diagonal
    expected = (u @ full @ u) / (u @ (diagonal * u)) / (38 / 1e-3)
    torch.testing.assert_close(
        measure(StepSharpness(), model, loss, optimizer), expected, rtol=1e-10, atol=0
    )


def test_a_larger_negative_eigenvalue_does_not_hide_the_largest() -> None:
    model = nn.ParameterList([torch.ones(3, dtype=torch.float64)])
    diagonal = torch.tensor([-9.0, 2.0, 1.0]).double()

    def loss(m: nn.Module) -> Tensor:
        return (m[0] * diagonal * m[0]).sum() / 2

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1.0)
    train(model, loss, optimizer, 1)
    signal = PreconditionedSharpness()
    for _ in range(80):
        value = measure(signal, model, loss, optimizer)
    edge = adam_diagonal(model, optimizer, 1) * 38
    torch.testing.assert_close(value, (diagonal / edge).max(), rtol=1e-8, atol=0)


def distance_after(loss: Loss, model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> float:
    train(model, loss, optimizer, n)
    return float(sum(p.detach().square().sum() for p in model.parameters())) ** 0.5


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 2.0), ({"momentum": 0.9}, 3.8), ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8)],
)
@pytest.mark.parametrize("share", [0.98, 1.02])
def test_gradient_descent_diverges_just_where_the_signal_passes_one(
    share: float, settings: dict[str, float], limit: float
) -> None:
    curvatures = torch.tensor([5.0, 1.0, 0.3]).double()
    model = nn.ParameterList([torch.tensor([1.0, 0.0, 0.0]).double()])  # along the sharpest

    def loss(m: nn.Module) -> Tensor:
        return (curvatures * m[0].square()).sum() / 2

    optimizer = torch.optim.SGD(model.parameters(), lr=share * limit / 5.0, **settings)
    value = measure(GradientSharpness(), model, loss, optimizer)
    assert float(value) == pytest.approx(share, rel=1e-12)
    # plain: a factor of 0.96 or 1.04 a step; the others leave the edge faster
    end = distance_after(loss, model, optimizer, 400)
    assert end < 1e-6 if share < 1 else end > 1e6


class FrozenAdam(torch.optim.Adam):
    """Adam whose second moments stay as they were set."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["exp_avg"].lerp_(p.grad, 1 - group["betas"][0])
                p -= group["lr"] * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])


@pytest.mark.lengthy
@pytest.mark.parametrize("share", [0.98, 1.02])
def test_frozen_adam_with_two_rates_diverges_just_where_the_signal_passes_one(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    square = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    full = square @ square.T + torch.eye(4)
    start = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    model = nn.ParameterList([start[0].clone(), start[1].clone()])

    def loss(m: nn.Module) -> Tensor:
        x = torch.cat([m[0], m[1]])
        return x @ full @ x / 2

    groups = [
        {"params": [model[0]], "lr": 1e-3, "betas": (0.9, 0.999)},
        {"params": [model[1]], "lr": 5e-3, "betas": (0.8, 0.999)},
    ]
    optimizer = FrozenAdam(groups, eps=0.0)
    for p in model.parameters():
        second = torch.rand(2, generator=generator, dtype=torch.float64) + 0.1
        step = torch.tensor(1e9)  # all corrections are 1
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": second}
    signal = PreconditionedSharpness()
    for _ in range(100):
        now = float(measure(signal, model, loss, optimizer))
    for group in optimizer.param_groups:
        group["lr"] *= share / now
    assert float(measure(signal, model, loss, optimizer)) == pytest.approx(share, rel=1e-9)
    end = distance_after(loss, model, optimizer, 400)
    assert end < 1e-3 if share < 1 else end > 1e3


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("rule", "lr", "kind"),
    [
        (torch.optim.SGD, 0.3, GradientSharpness),
        (torch.optim.Adam, 0.01, PreconditionedSharpness),
    ],
)
def test_training_on_the_whole_batch_sharpens_until_the_signal_reads_one(
    rule: type[torch.optim.Optimizer], lr: float, kind: type[ProbeSignal]
) -> None:
    """Cohen et al.'s finding, on a small network: up from far below, and then along the edge."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5))
    inputs, targets = torch.randn(128, 20), torch.randn(128, 5)

    def loss(m: nn.Module) -> Tensor:
        return 2.5 * nn.functional.mse_loss(m(inputs), targets)

    optimizer, signal, seen = rule(model.parameters(), lr=lr), kind(), []
    for _ in range(60):
        train(model, loss, optimizer, 20)
        seen.append(float(measure(signal, model, loss, optimizer)))
    assert seen[0] < 0.5
    assert 0.85 < np.median(seen[-20:]) < 1.1


@pytest.mark.parametrize(
    "build",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.9, 0.999), weight_decay=0.0),
        lambda ps: torch.optim.Adam(ps, lr=0.01, betas=(0.9, 0.999), amsgrad=True),
        lambda ps: Lamb(ps, lr=0.01, betas=(0.9, 0.999), weight_decay=0.0, max_grad_norm=None),
        lambda ps: Lamb(
            ps, lr=0.01, weight_decay=0.0, always_adapt=True, eps=1e-8, max_grad_norm=None
        ),
        lambda ps: StableAdamW(ps, lr=0.01, betas=(0.9, 0.999), eps=1e-8),
        lambda ps: timm.optim.AdamWLegacy(ps, lr=0.01, weight_decay=0.0),
    ],
)
def test_the_limit_is_that_of_the_step_the_optimizer_really_makes(
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    """Under a constant gradient, which is its own mean, a step is rate over root times it."""
    generator = torch.Generator().manual_seed(1)
    parameter = nn.Parameter(torch.rand(6, generator=generator, dtype=torch.float64) + 1)
    gradient = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
    optimizer = build([parameter])
    for _ in range(12):
        before = parameter.detach().clone()
        if "max_exp_avg_sq" in optimizer.state.get(parameter, {}):
            optimizer.state[parameter]["max_exp_avg_sq"] *= (
                2  # AMSGrad's maximum is of the past, not the present mean
            )
        parameter.grad = gradient.clone()
        optimizer.step()
    rate_over_root = (before - parameter.detach()) / gradient
    parameter.data = before  # LAMB's ratio is of the weights before the step
    bearing = bearing_of_adam(parameter, owners([optimizer])[parameter])
    assert bearing is not None
    share = (1 - 0.9) / (1 - 0.9**12)  # of the newest gradient in its mean
    # StableAdamW's RMS is 1 up to rounding; a step of 1% loses two of the 16 digits
    torch.testing.assert_close(bearing, rate_over_root * share / (2 * 1.9), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: torch.optim.Adagrad(ps, lr=0.1),
        lambda ps: torch.optim.RAdam(ps, lr=0.1),
        lambda ps: timm.optim.Lion(ps, lr=0.1),
        lambda ps: timm.optim.Adan(ps, lr=0.1),
    ],
)
def test_where_adams_limit_does_not_hold_nothing_is_said(
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    model, loss = small_model()
    optimizer = build(list(model.parameters()))
    train(model, loss, optimizer, 3)
    assert measure(StepSharpness(), model, loss, optimizer) == {}
    assert measure(PreconditionedSharpness(), model, loss, optimizer) == {}
    assert float(measure(GradientSharpness(), model, loss, optimizer)) > 0


def test_before_adams_first_step_only_the_plain_one_is_known() -> None:
    model, loss = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert measure(StepSharpness(), model, loss, optimizer) == {}
    assert measure(PreconditionedSharpness(), model, loss, optimizer) == {}
    assert math.isfinite(measure(GradientSharpness(), model, loss, optimizer))
    assert measure(GradientSharpness(), model, loss) == {}  # nothing steps these parameters


def test_a_rate_of_zero_reads_zero_and_leaves_the_vector_warm() -> None:
    model, loss = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, loss, optimizer, 5)
    signal = PreconditionedSharpness()
    warm = [float(measure(signal, model, loss, optimizer)) for _ in range(40)][-1]
    optimizer.param_groups[0]["lr"] = 0.0
    assert [float(measure(kind(), model, loss, optimizer)) for kind in ALL] == [0.0] * 3
    assert float(measure(signal, model, loss, optimizer)) == 0
    optimizer.param_groups[0]["lr"] = 1e-3
    assert float(measure(signal, model, loss, optimizer)) == pytest.approx(warm, rel=1e-9)


def test_a_rate_may_be_a_tensor() -> None:
    values = []
    for rate in (0.01, torch.tensor(0.01, dtype=torch.float64)):
        model, loss = small_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=False)
        train(model, loss, optimizer, 3)
        values.append([float(measure(kind(), model, loss, optimizer)) for kind in ALL])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.lengthy
def test_parameters_may_freeze_and_thaw() -> None:
    model, loss = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, loss, optimizer, 5)
    signal = PreconditionedSharpness()
    for thawed in (False, True, False, True):
        model[0].requires_grad_(thawed)
        for _ in range(60):
            value = measure(signal, model, loss, optimizer)
        _, full = hessian(model, loss)
        edge = adam_diagonal(model, optimizer, 5) * 38
        part = slice(None) if thawed else slice(16, None)
        expected = torch.linalg.eigvals((full / edge[:, None])[part, part]).real.max()
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=0)


def test_a_non_finite_value_is_given_and_forgotten() -> None:
    model, loss = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, loss, optimizer, 5)
    signals = [kind() for kind in ALL]
    kept = model[0].weight.detach().clone()
    model[0].weight.data[0, 0] = math.nan
    assert all(math.isnan(measure(signal, model, loss, optimizer)) for signal in signals)
    model[0].weight.data = kept
    assert all(math.isfinite(measure(signal, model, loss, optimizer)) for signal in signals)


def test_unused_and_linear_parameters_have_no_curvature() -> None:
    model = nn.ParameterList([torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([3.0])])

    def loss(m: nn.Module) -> Tensor:
        return (m[0] ** 2 + 4 * m[1]).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    # g = (4, 4), H = diag(2, 0): 2 * 16 / 32 * 0.5 / 2
    assert float(measure(GradientSharpness(), model, loss, optimizer)) == pytest.approx(0.25)

    def linear(m: nn.Module) -> Tensor:
        return m[1].sum()

    assert float(measure(GradientSharpness(), model, linear, optimizer)) == 0


@pytest.mark.parametrize("bad", [lambda m: m[0].weight, lambda m: torch.tensor(1.0)])
def test_a_loss_that_is_none_is_named(bad: Loss) -> None:
    model, _ = small_model()
    with pytest.raises(ValueError, match=r"Probe\.loss.* must be a scalar that depends on"):
        measure(GradientSharpness(), model, bad)


def vit(fused: bool) -> tuple[nn.Module, Loss, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5
    )
    for block in model.blocks:
        block.attn.fused_attn = fused
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)

    def loss(m: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(m(images), labels)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, loss, optimizer, 3)
    return model.eval(), loss, optimizer


def test_fused_attention_gives_the_same() -> None:
    values = []
    for fused in (True, False):
        model, loss, optimizer = vit(fused)
        seen = look(model, loss, optimizer)
        values.append([float(kind().measure(seen)) for kind in ALL])
    # float32; three steps of Adam, of which the first is a sign, spread the kernels' rounding
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert min(values[0]) > 0


def test_nothing_of_the_training_changes() -> None:
    model, loss, optimizer = vit(fused=True)
    everything = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    for state in optimizer.state.values():
        everything += state.values()
    before = [t.clone() for t in everything]
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    seen = look(model, loss, optimizer)
    for kind in ALL:
        kind().measure(seen)
    assert all(t.equal(b) for t, b in zip(everything, before, strict=True))
    assert random.getstate() == generators[0]
    assert np.random.get_state()[1].tolist() == generators[1]
    assert torch.get_rng_state().equal(generators[2])
    assert torch.backends.cuda.flash_sdp_enabled()


def test_one_forward_serves_all_and_its_graph_ends_with_the_look() -> None:
    model, loss, optimizer = vit(fused=True)
    calls: list[weakref.ref[Tensor]] = []

    def counted(m: nn.Module) -> Tensor:
        value = loss(m)
        calls.append(weakref.ref(value))
        return value

    gc.disable()
    try:
        seen = look(model, counted, optimizer)
        signals = [kind() for kind in ALL]
        for signal in signals:
            signal.measure(seen)
        kept = weakref.ref(seen.kept["curvature"])
        del seen
        assert len(calls) == 1
        assert kept() is None  # without a collection of garbage: no cycle holds the graph
    finally:
        gc.enable()
