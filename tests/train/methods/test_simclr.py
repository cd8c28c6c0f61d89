import math

import pytest
import torch
from torch import Tensor

from stabkit.train.methods.simclr import SimCLR, nt_xent
from tests.train.small import (
    FROZEN,
    kinds,
    loss_and_gradients,
    on_two_processes,
    random_pair,
    small,
    views,
    without_gradient,
)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_equals_the_sum_over_every_pair(temperature: float) -> None:
    """Compute equation 1 one logit at a time: 2N views, each against all but itself."""
    first, second = random_pair(6, 5)
    everyone, count = [*first, *second], len(first)
    total = 0.0
    for i, anchor in enumerate(everyone):
        logits = {
            j: float(torch.dot(anchor, other) / anchor.norm() / other.norm()) / temperature
            for j, other in enumerate(everyone)
            if j != i
        }
        assert len(logits) == 1 + 2 * count - 2
        own = logits[(i + count) % (2 * count)]
        total += math.log(sum(math.exp(x) for x in logits.values())) - own
    expected = total / (2 * count)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(expected, rel=1e-12)


def test_views_that_cannot_be_told_apart_are_at_chance() -> None:
    same = torch.ones(32, 4, dtype=torch.float64)
    scalars = small(SimCLR).loss_scalars(nt_xent(same, same, 0.1), 32)
    assert float(scalars["loss_nats"]) == pytest.approx(math.log(63))
    assert float(scalars["loss_relative"]) == pytest.approx(1)


def test_a_step_by_hand_gives_the_same_loss() -> None:
    """BN sees both views; the temperature is .1 unless given; there is no factor 2τ."""
    simclr = small(SimCLR)
    assert kinds(simclr.online.projector)[-2:] == ["Linear", "BatchNorm1d"]
    view1, view2, labels = views()
    loss, feature, _ = simclr(view1, view2, labels, 0.99, 0)
    features = simclr.online.backbone(torch.cat([view1, view2]))
    projected = simclr.online.projector(features)
    torch.testing.assert_close(loss, nt_xent(projected[:6], projected[6:], 0.1))
    torch.testing.assert_close(feature, features[:6].detach())
    assert small(SimCLR, temperature=0.2).temperature == 0.2


def test_gradient_reaches_everything_that_trains() -> None:
    simclr = small(SimCLR, freeze=True)
    loss, feature, _ = simclr(*views(), 0.99, 0)
    loss.backward()
    assert not feature.requires_grad
    assert without_gradient(simclr) == FROZEN
    names = {name.split(".")[0] for name, _ in simclr.online.named_parameters()}
    assert names == {"backbone", "projector"}


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path) -> None:
    """The gradient also flows through the views of the other process; without it this fails."""
    first, second = random_pair(6, 5)

    def loss_of(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent(first, second, 0.1)

    expected = loss_and_gradients(loss_of, first, second)
    torch.testing.assert_close(on_two_processes(loss_of, first, second, tmp_path), expected)
