import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.methods.swav import SwAV, codes_of, sinkhorn
from stabkit.train.state import build_state
from tests.conftest import small_config
from tests.train.small import (
    FROZEN,
    kinds,
    loss_and_gradients,
    on_two_processes,
    small,
    views,
    without_gradient,
)


def scores(images: int = 9, prototypes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.rand(images, prototypes, dtype=torch.float64, generator=generator) - 1


def test_sinkhorn_equals_the_alternate_rescaling_of_a_matrix() -> None:
    """Follow the listing of the paper in plain numbers: prototypes to 1/K, then images to 1/N."""
    matrix = np.exp(scores().numpy().T / 0.05)
    matrix /= matrix.sum()
    rows, columns = matrix.shape
    for _ in range(3):
        for k in range(rows):
            matrix[k] /= matrix[k].sum() * rows
        for n in range(columns):
            matrix[:, n] /= matrix[:, n].sum() * columns
    expected = torch.from_numpy(matrix.T * columns)
    torch.testing.assert_close(sinkhorn(scores(), 0.05, 3), expected)


@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_codes_sum_to_one_and_prototypes_share_the_images(eps: float) -> None:
    """Images sum to 1 exactly; prototypes approach N/K with every iteration."""
    off = []
    for iterations in (0, 1, 3, 3000):
        codes = sinkhorn(scores(), eps, iterations)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(9, dtype=torch.float64))
        off.append(float((codes.sum(dim=0) - 9 / 4).abs().max()))
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.1
    assert off[-1] < 1e-6


def test_sinkhorn_balances_a_collapsed_batch_too() -> None:
    """Equal images have uniform codes with Sinkhorn, and all the same peak without it."""
    same = scores(1).repeat(8, 1)
    torch.testing.assert_close(sinkhorn(same, 0.05, 3), torch.full_like(same, 1 / 4))
    assert float(sinkhorn(same, 0.05, 0).max()) > 0.9


def test_tiny_eps_does_not_overflow() -> None:
    assert sinkhorn(scores().float(), 1e-3, 3).isfinite().all()


def test_a_step_by_hand_gives_the_same_loss() -> None:
    """Compute the swapped prediction of two crops, one -Σ q log p at a time."""
    swav = small(SwAV)
    view1, view2, labels = views()
    loss, feature, _ = swav(view1, view2, labels, 0.99, 0)
    weight = swav.online.prototypes.weight.detach()
    products = []
    for view in (view1, view2):
        projected = swav.online.projector(swav.online.backbone(view)).detach()
        products.append(projected / projected.norm(dim=1, keepdim=True) @ weight.T)
    total = 0.0
    for here, other in (products, products[::-1]):
        codes = sinkhorn(other, 0.05, 3).tolist()
        for row, code in zip((here / 0.1).tolist(), codes, strict=True):
            log_sum = math.log(sum(math.exp(x) for x in row))
            total -= sum(q * (x - log_sum) for q, x in zip(code, row, strict=True))
    assert float(loss.detach()) == pytest.approx(total / (2 * len(view1)), rel=1e-10)
    torch.testing.assert_close(feature, swav.online.backbone(view1).detach())


def test_chance_is_ln_k() -> None:
    scalars = small(SwAV).loss_scalars(torch.tensor(math.log(12)), 6)
    assert float(scalars["loss_relative"]) == pytest.approx(1)


def test_heads_have_no_bn_and_prototypes_are_unit_vectors() -> None:
    swav = small(SwAV)
    assert kinds(swav.online.projector) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    norms = swav.online.prototypes.weight.norm(dim=1)
    assert norms.shape == (12,)
    torch.testing.assert_close(
        norms, torch.ones_like(norms), rtol=1e-6, atol=0
    )  # the start is in float32


def test_gradient_reaches_everything_but_frozen_prototypes() -> None:
    swav = small(SwAV, freeze=True, freeze_prototypes_steps=2)
    loss, feature, _ = swav(*views(), 0.99, 1)
    loss.backward()
    assert not feature.requires_grad
    assert without_gradient(swav) == FROZEN | {"prototypes.weight"}
    swav(*views(), 0.99, 2)[0].backward()
    assert without_gradient(swav) == FROZEN


def test_codes_have_no_gradient() -> None:
    assert not codes_of(scores().requires_grad_(), 0.05, 3).requires_grad


def test_frozen_prototypes_keep_every_bit_and_then_move_on_the_sphere() -> None:
    swav = small(SwAV, freeze_prototypes_steps=3)
    optimizer = torch.optim.AdamW(swav.online.parameters(), lr=0.1, weight_decay=0.5)
    start = swav.online.prototypes.weight.detach().clone()
    for step in range(5):
        optimizer.zero_grad()
        swav(*views(), 0.99, step)[0].backward()
        weight = swav.online.prototypes.weight.detach()
        if step <= 3:
            torch.testing.assert_close(weight, start, rtol=1e-7, atol=1e-7)
        if step < 3:
            assert weight.equal(start), "not even weight decay may move them"
        else:
            torch.testing.assert_close(weight.norm(dim=1), torch.ones(12, dtype=torch.float64))
        optimizer.step()
    assert not torch.allclose(swav.online.prototypes.weight, start, atol=0.01)


@pytest.mark.lengthy
@pytest.mark.parametrize("frozen", [5, 12])
def test_the_loop_frees_the_prototypes_in_time(frozen: int, tmp_path: Path) -> None:
    config = small_config(
        "method.name=swav",
        f"method.freeze_prototypes_steps={frozen}",
        "train.steps=12",
        "knn.every=12",
    )
    start = build_state(config, 64, torch.device("cpu")).model.state_dict()
    loop.train(config, RunDir(tmp_path))
    trained = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    name = "online.prototypes.weight"
    assert trained[name].equal(start[name]) == (frozen == 12)


def test_codes_of_two_processes_are_balanced_together(tmp_path) -> None:
    def loss_of(first: Tensor, second: Tensor) -> Tensor:
        codes = codes_of(second, 0.05, 3)
        return torch.nn.functional.cross_entropy(first / 0.1, codes)

    first, second = scores(8), scores(8).flip(0)
    expected = loss_and_gradients(loss_of, first, second)
    torch.testing.assert_close(on_two_processes(loss_of, first, second, tmp_path), expected)
