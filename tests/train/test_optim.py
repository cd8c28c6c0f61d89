import math

import pytest
import torch
from torch import nn

from stabkit.config import MethodConfig, OptimConfig
from stabkit.train.optim import build_optimizer, lr_at, momentum_at, peak_lr


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 3))
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.mark.parametrize("decay_all", [True, False])
def test_ten_steps_equal_the_written_formula(decay_all: bool) -> None:
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2) in float64, decay on the stated tensors."""
    config = OptimConfig(lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.95, decay_all=decay_all)
    model = small().double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(1)
    grads = []
    for step in range(10):
        grads.append(
            {n: torch.randn(p.shape, generator=generator).double() for n, p in start.items()}
        )
        for name, p in model.named_parameters():
            p.grad = grads[-1][name] if p.requires_grad else None
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
    for name, p in model.named_parameters():
        if name.startswith("frozen"):
            assert p.equal(start[name])
            continue
        decay = 0.3 if decay_all or name == "linear.weight" else 0.0
        value, m, v = start[name], 0.0, 0.0
        for t, grad in enumerate(g[name] for g in grads):
            lr = 0.01 * (t + 1)
            m = 0.8 * m + 0.2 * grad
            v = 0.95 * v + 0.05 * grad**2
            update = (m / (1 - 0.8 ** (t + 1))) / (torch.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
            value = value - lr * decay * value - lr * update
        torch.testing.assert_close(p.detach(), value, rtol=1e-12, atol=1e-14)


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
