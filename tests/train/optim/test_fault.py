import math

import pytest
import torch

from stabkit import load_config, open_run, train_run
from stabkit.config import ConfigError, FaultConfig, OptimConfig, run_id
from stabkit.train.optim.build import build_optimizer
from stabkit.train.optim.fault import hold_back
from tests.conftest import small_config


def model() -> torch.nn.Module:
    net = torch.nn.ModuleDict({"patch_embed": torch.nn.Linear(2, 3), "head": torch.nn.Linear(3, 1)})
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    return net


def gradients(net: torch.nn.Module) -> list[float]:
    return [float(net[name].weight.grad.mean()) for name in ("patch_embed", "head")]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, [0.01, 0.01]), (6, [0.01, 0.01]), (7, [1, 0.01]), (9, [1, 0.01]), (10, [1, 1])],
)
def test_gradients_return_at_their_steps(step: int, expected: list[float]) -> None:
    net = model()
    hold_back(net, FaultConfig(until=10, scale=0.01, first="patch_embed", lead=3), step)
    assert gradients(net) == pytest.approx(expected)


def test_adam_trains_on_under_the_hold_and_overshoots_at_the_return() -> None:
    """Steady gradients g, k updates after a hold of t: m = (1 - .9^k) g, v = k / (t + k) g²."""
    weight = torch.nn.Parameter(torch.zeros(1))
    net = torch.nn.ParameterDict({"head": weight})
    optimizer = build_optimizer(net, OptimConfig(lr=1.0, weight_decay=0, beta2=0.999999))
    sizes = []
    for step in range(120):
        weight.grad = torch.ones(1)
        hold_back(net, FaultConfig(until=100, scale=1e-3), step)
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        before = float(weight.detach())
        optimizer.step()
        sizes.append(abs(float(weight.detach()) - before))
    assert sizes[99] == pytest.approx(1, abs=1e-3), "Adam does not see the scale"
    expected = [(1 - 0.9**k) * math.sqrt((100 + k) / k) for k in range(1, 21)]
    assert sizes[100:] == pytest.approx(expected, rel=0.02)
    assert max(expected) > 2


@pytest.mark.lengthy
def test_the_record_shows_the_return_in_the_planted_order(tmp_path) -> None:
    words = ["fault.until=12", "fault.first=patch_embed", "fault.lead=4"]
    config = small_config(*words)
    train_run(config, tmp_path / "run")
    norms = open_run(tmp_path / "run").signals(["grad_norm"])
    table = norms.pivot_table(index="step", columns="layer", values="grad_norm", observed=True)
    jumps = (table.shift(-1) / table > 30).idxmax() + 1
    assert jumps["patch_embed"] == 8
    assert set(jumps.drop("patch_embed")) == {12}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["fault.scale=0.5"], "scale 0.5 does nothing with until 0"),
        (["fault.until=5", "fault.lead=2"], "first None and lead 2: give both"),
        (["fault.until=5", "fault.first=norm", "fault.lead=5"], "lead 5 must be below until 5"),
        (["fault.until=501"], "fault.until 501 exceeds train.steps 500"),
    ],
)
def test_a_fault_without_effect_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("tiny", words)
    assert problem in str(error.value)


def test_a_layer_that_is_not_there_is_named() -> None:
    fault = FaultConfig(until=5, first="blocks.9", lead=1)
    with pytest.raises(ValueError, match=r"fault.first 'blocks.9'.*its layers: patch_embed, head"):
        hold_back(model(), fault, 0)


def test_a_planted_fault_is_part_of_the_run_id() -> None:
    assert run_id(load_config("tiny")) == run_id(load_config("tiny", ["fault.until=0"]))
    assert run_id(load_config("tiny")) != run_id(load_config("tiny", ["fault.until=9"]))
