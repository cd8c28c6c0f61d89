import math

import pytest
import torch

from stabkit.train.methods.supervised import Supervised
from tests.train.small import FROZEN, NUM_CLASSES, small, views, without_gradient


def test_loss_is_the_mean_cross_entropy_of_both_views() -> None:
    supervised = small(Supervised)
    with torch.no_grad():
        supervised.online.head.weight.mul_(100)  # away from chance
    view1, view2, labels = views()
    loss, feature, _ = supervised(view1, view2, labels, 0.99, 0)
    total = 0.0
    for view in (view1, view2):
        rows = supervised.online.head(supervised.online.backbone(view)).tolist()
        for row, label in zip(rows, labels.tolist(), strict=True):
            total += math.log(sum(math.exp(x) for x in row)) - row[label]
    assert float(loss.detach()) == pytest.approx(total / (2 * len(labels)), rel=1e-10)
    torch.testing.assert_close(feature, supervised.online.backbone(view1).detach())


def test_training_starts_at_chance() -> None:
    supervised = small(Supervised)
    loss, *_ = supervised(*views(30), 0.99, 0)
    scalars = supervised.loss_scalars(loss.detach(), 30)
    assert float(scalars["loss_nats"]) == pytest.approx(math.log(NUM_CLASSES), rel=0.05)
    assert float(scalars["loss_relative"]) == pytest.approx(1, rel=0.05)


def test_gradient_reaches_everything_that_trains() -> None:
    supervised = small(Supervised, freeze=True)
    loss, feature, _ = supervised(*views(), 0.99, 0)
    loss.backward()
    assert not feature.requires_grad
    assert without_gradient(supervised) == FROZEN
