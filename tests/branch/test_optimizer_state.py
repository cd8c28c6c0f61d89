"""A change of the optimizer in mid-run keeps its moments: the corrected ones, by which it steps."""

from typing import Any

import pytest
import torch

from stabkit.branch.optimizer_state import carried_over, forgotten
from stabkit.config import OptimConfig
from stabkit.train.optim.build import build_optimizer

STEPS = 30


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3)


def gradients(network: torch.nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def after_steps(config: OptimConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network = model()
    optimizer = build_optimizer(network, config)
    for step in range(STEPS):
        gradients(network, step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
    return network, optimizer


def corrected(state: dict[str, Any], config: OptimConfig) -> list[torch.Tensor]:
    """Return the moments as Adam's paper defines them, of every parameter."""
    found = []
    for one in state["state"].values():
        steps = float(one["step"])
        assert steps == STEPS
        stored_corrected = config.name == "stable_adamw"
        for name, beta in (("exp_avg", config.beta1), ("exp_avg_sq", config.beta2)):
            found.append(one[name] if stored_corrected else one[name] / (1 - beta**steps))
    return found


ADAMW = OptimConfig()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ADAMW, OptimConfig(beta2=0.9)),
        (ADAMW, OptimConfig(beta1=0.5, beta2=0.98)),
        (ADAMW, OptimConfig(name="stable_adamw")),
        (OptimConfig(name="stable_adamw"), ADAMW),
        (ADAMW, OptimConfig(name="stable_adamw", beta2=0.9, eps=1e-4)),
        (ADAMW, OptimConfig(eps=1e-4, weight_decay=0.3)),
    ],
)
def test_corrected_moments_are_kept_and_the_new_settings_hold(
    before: OptimConfig, after: OptimConfig
) -> None:
    network, optimizer = after_steps(before)
    fresh = build_optimizer(network, after)
    state = carried_over(optimizer.state_dict(), fresh.state_dict(), before, after)
    for one, other in zip(
        corrected(optimizer.state_dict(), before), corrected(state, after), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    fresh.load_state_dict(state)
    group = fresh.param_groups[0]
    assert (group["betas"], group["eps"]) == ((after.beta1, after.beta2), after.eps)
    assert group["weight_decay"] == after.weight_decay
    gradients(network, STEPS)
    fresh.step()


def test_the_first_update_after_a_smaller_beta2_is_that_of_adam_with_these_moments() -> None:
    """Without the conversion it would be too large by about 1 / sqrt(1 - .999^30), nearly 6."""
    network, optimizer = after_steps(ADAMW)
    after = OptimConfig(beta2=0.9, weight_decay=0.0)
    fresh = build_optimizer(network, after)
    fresh.load_state_dict(carried_over(optimizer.state_dict(), fresh.state_dict(), ADAMW, after))
    first, second = corrected(optimizer.state_dict(), ADAMW)[:2]
    weight = next(network.parameters())
    start = weight.detach().clone()
    gradients(network, STEPS)
    gradient = weight.grad
    assert gradient is not None
    for group in fresh.param_groups:
        group["lr"] = 1e-3
    fresh.step()
    # moments go on from the corrected ones: m = b m_hat (1 - b^t) + (1 - b) g, over 1 - b^(t+1)
    t = STEPS
    m = (0.9 * first * (1 - 0.9**t) + 0.1 * gradient) / (1 - 0.9 ** (t + 1))
    v = (0.9 * second * (1 - 0.9**t) + 0.1 * gradient**2) / (1 - 0.9 ** (t + 1))
    torch.testing.assert_close(start - weight, 1e-3 * m / (v.sqrt() + 1e-8), rtol=1e-3, atol=1e-7)


def test_without_a_change_the_state_is_the_same_bits() -> None:
    _, optimizer = after_steps(ADAMW)
    state = optimizer.state_dict()
    assert carried_over(state, {}, ADAMW, OptimConfig())["state"] is state["state"]


def test_a_reset_layer_is_forgotten_whole_and_no_other() -> None:
    _, optimizer = after_steps(ADAMW)
    state = optimizer.state_dict()
    assert set(forgotten(state, ["a", "b"], ["b"])["state"]) == {0}
    assert forgotten(state, ["a", "b"], ["all"])["state"] == {}
