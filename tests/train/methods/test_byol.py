import copy

import pytest
import torch

from stabkit.train.methods.byol import BYOL, regression
from tests.train.small import FROZEN, kinds, small, views, without_gradient


def test_loss_is_the_squared_distance_of_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)
    total = 0.0
    for p, z in zip(first.tolist(), second.tolist(), strict=True):
        norm_p, norm_z = sum(x * x for x in p) ** 0.5, sum(x * x for x in z) ** 0.5
        total += sum((a / norm_p - b / norm_z) ** 2 for a, b in zip(p, z, strict=True))
    assert float(regression(first, second)) == pytest.approx(total / 7, rel=1e-12)
    assert float(regression(first, -first)) == pytest.approx(4)


def test_a_step_by_hand_gives_the_same_loss() -> None:
    """Sum both directions; targets are projections of the twin after its move."""
    byol = small(BYOL)
    with torch.no_grad():
        for p in byol.target.parameters():
            p.add_(0.1)
    view1, view2, labels = views()
    by_hand = copy.deepcopy(byol)
    loss, feature, _ = byol(view1, view2, labels, 0.9, 0)

    online, target = by_hand.online, by_hand.target
    slow = dict(target.named_parameters())
    for name, p in online.named_parameters():
        if name in slow:
            slow[name].data = 0.9 * slow[name] + 0.1 * p.data
    total = torch.zeros((), dtype=torch.float64)
    for view, other in ((view1, view2), (view2, view1)):
        prediction = online.predictor(online.projector(online.backbone(view)))
        projection = target.projector(target.backbone(other)).detach()
        cosine = (prediction * projection).sum(1) / prediction.norm(dim=1) / projection.norm(dim=1)
        total = total + (2 - 2 * cosine).mean()
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(feature, by_hand.online.backbone(view1).detach())


def test_heads_have_bn_in_hidden_layers_but_not_on_outputs() -> None:
    byol = small(BYOL)
    layer = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(byol.online.projector) == [*layer, *layer, "Linear"]
    assert kinds(byol.online.predictor) == [*layer, "Linear"]


def test_gradient_reaches_the_online_network_and_nothing_else() -> None:
    byol = small(BYOL, freeze=True)
    loss, feature, _ = byol(*views(), 0.99, 0)
    loss.backward()
    assert not feature.requires_grad
    assert without_gradient(byol) == FROZEN
    assert all(p.grad is None for p in byol.target.parameters())


def test_no_level_of_chance_is_claimed() -> None:
    assert small(BYOL).loss_scalars(torch.tensor(1.0), 6) == {}


def test_without_a_predictor_a_copy_of_the_network_has_nothing_to_learn_from_equal_views() -> None:
    """Its loss is at the minimum, 0. With a predictor the loss is larger."""
    view, _, labels = views()
    bare, full = small(BYOL, predictor=False), small(BYOL)
    assert float(bare(view, view, labels, 0.0, 0)[0].detach()) == pytest.approx(0, abs=1e-12)
    assert float(full(view, view, labels, 0.0, 0)[0].detach()) > 0.1
