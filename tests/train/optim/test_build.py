import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stabkit.config import MethodConfig, OptimConfig
from stabkit.config.schedule import lr_at, momentum_at, peak_lr
from stabkit.train.optim.build import build_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 3))
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 3))
        self.linear = nn.Linear(3, 2)
        self.gained = weight_norm(nn.Linear(3, 2, bias=False))
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


Series = list[torch.Tensor]


def adamw(value: torch.Tensor, grads: Series, lrs: list[float], decay: float) -> torch.Tensor:
    """Loshchilov & Hutter 2019, Algorithm 2."""
    m, v = 0.0, 0.0
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        m = 0.8 * m + 0.2 * grad
        v = 0.95 * v + 0.05 * grad**2
        update = (m / (1 - 0.8**t)) / (torch.sqrt(v / (1 - 0.95**t)) + 1e-8)
        value = value - lr * decay * value - lr * update
    return value


def stable_adamw(
    value: torch.Tensor, grads: Series, lrs: list[float], decay: float
) -> torch.Tensor:
    """Wortsman et al. 2023, Algorithm 2."""
    m, v = torch.zeros_like(value), torch.zeros_like(value)
    largest = 0.0
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        beta1 = 0.8 * (1 - 0.8 ** (t - 1)) / (1 - 0.8**t)
        beta2 = 0.95 * (1 - 0.95 ** (t - 1)) / (1 - 0.95**t)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        rms = math.sqrt((grad**2 / torch.clamp(v, min=1e-16)).mean())
        largest = max(largest, rms)
        eta = lr / max(1.0, rms)
        value = value - eta * decay * value - eta * m / (torch.sqrt(v) + 1e-8)
    assert largest > 1.5, "the gradients given must make the clipping act"
    return value


def sgd(value: torch.Tensor, grads: Series, lrs: list[float], decay: float) -> torch.Tensor:
    mu = 0.0
    for grad, lr in zip(grads, lrs, strict=True):
        mu = 0.7 * mu + grad + decay * value
        value = value - lr * mu
    return value


def lars(value: torch.Tensor, grads: Series, lrs: list[float], decay: float) -> torch.Tensor:
    """You et al. 2017, equation 6, with the rate outside the momentum, as in MoCo v3.

    One-dimensional tensors: neither decay nor adaptation.
    """
    mu = 0.0
    for grad, lr in zip(grads, lrs, strict=True):
        local = 0.02 * value.norm() / (grad.norm() + decay * value.norm())
        step = local * (grad + decay * value) if value.ndim > 1 else grad
        mu = 0.7 * mu + step
        value = value - lr * mu
    return value


def lamb(value: torch.Tensor, grads: Series, lrs: list[float], decay: float) -> torch.Tensor:
    """You et al. 2020, Algorithm 2, φ the identity. One-dimensional tensors: Adam's update."""
    m, v = 0.0, 0.0
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        m = 0.8 * m + 0.2 * grad
        v = 0.95 * v + 0.05 * grad**2
        update = (m / (1 - 0.8**t)) / (torch.sqrt(v / (1 - 0.95**t)) + 1e-6)
        if value.ndim > 1:
            update = update + decay * value
            update = update * value.norm() / update.norm()
        value = value - lr * update
    return value


RULES = {"adamw": adamw, "stable_adamw": stable_adamw, "sgd": sgd, "lars": lars, "lamb": lamb}
SETTINGS = {
    "sgd": {"momentum": 0.7},
    "lars": {"momentum": 0.7, "trust": 0.02},
}
ADAM_TYPE = {"beta1": 0.8, "beta2": 0.95}


@pytest.mark.parametrize("weight_decay", [0.3, 0.0])
@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_ten_steps_equal_the_written_formula(
    name: str, decay_all: bool, weight_decay: float
) -> None:
    """In float64, decay on the stated tensors; one gradient in ten is a spike."""
    config = OptimConfig.model_validate(
        {
            "name": name,
            "weight_decay": weight_decay,
            "decay_all": decay_all,
            **SETTINGS.get(name, ADAM_TYPE),
        }
    )
    model = small().double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(1)
    grads = []
    lrs = [0.01 * (step + 1) for step in range(10)]
    for step, lr in enumerate(lrs):
        scale = 30.0 if step == 6 else 1.0
        grads.append(
            {
                n: scale * torch.randn(p.shape, generator=generator).double()
                for n, p in start.items()
            }
        )
        for n, p in model.named_parameters():
            p.grad = grads[-1][n] if p.requires_grad else None
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for n, p in model.named_parameters():
        if n.startswith("frozen"):
            assert p.equal(start[n])
            continue
        adapts = name in ("lars", "lamb")
        few = p.ndim < 2 or n == "gained.parametrizations.weight.original0"
        token = n in ("cls_token", "pos_embed")
        plain = (few or token) if not decay_all else (few and adapts)
        decay = 0.0 if plain else weight_decay
        if adapts and plain:  # like a vector
            expected = RULES[name](start[n].flatten(), [g[n].flatten() for g in grads], lrs, 0.0)
            expected = expected.view_as(p)
        else:
            expected = RULES[name](start[n], [g[n] for g in grads], lrs, decay)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_a_parameter_without_gradient_keeps_every_bit_and_counts_from_its_first(name: str) -> None:
    """Thawed after three steps, it moves as if training began there (LAMB counts for all alike)."""
    model = small()
    optimizer = build_optimizer(model, OptimConfig(name=name))
    bias = model.linear.bias.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for step in range(4):
        for n, p in model.named_parameters():
            absent = not p.requires_grad or (n == "linear.bias" and step < 3)
            p.grad = None if absent else torch.full_like(p, 2.0)
        assert model.linear.bias.equal(bias)
        optimizer.step()
    moved = (bias * (1 - 0.1 * 0.1) if "adam" in name else bias) - model.linear.bias
    if name in ("adamw", "stable_adamw"):
        torch.testing.assert_close(moved, torch.full_like(bias, 0.1))
    assert not moved.equal(torch.zeros_like(bias))


@pytest.mark.parametrize(("rule", "factor"), [("linear", 16.0), ("sqrt", 4.0), ("none", 1.0)])
def test_lr_rules_scale_the_base_rate_by_batch(rule: str, factor: float) -> None:
    """Paper: base 1.5e-4 at batch 4096 under the linear rule is 2.4e-3."""
    config = OptimConfig.model_validate({"lr": 1.5e-4, "lr_rule": rule})
    assert peak_lr(config, 4096) == pytest.approx(1.5e-4 * factor)
    assert peak_lr(config, 256) == pytest.approx(1.5e-4)


def test_lr_warms_up_from_zero_then_falls_as_half_a_cosine() -> None:
    config = OptimConfig(lr=1.0, lr_rule="none", warmup_steps=10)
    lrs = [lr_at(step, 110, config, 256) for step in range(110)]
    assert lrs[:11] == pytest.approx([i / 10 for i in range(11)])
    assert lrs[60] == pytest.approx(0.5)
    assert lrs[35] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < lrs[-1] < 3e-4
    assert lr_at(0, 5, OptimConfig(lr=1.0, lr_rule="none"), 256) == 1.0


def test_momentum_rises_from_its_base_to_one_or_stays() -> None:
    cosine = MethodConfig(momentum=0.99)
    assert momentum_at(0, 100, cosine) == pytest.approx(0.99)
    assert momentum_at(50, 100, cosine) == pytest.approx(0.995)
    assert momentum_at(100, 100, cosine) == pytest.approx(1.0)
    constant = MethodConfig(momentum=0.9, momentum_schedule="constant")
    assert {momentum_at(step, 100, constant) for step in range(101)} == {0.9}
