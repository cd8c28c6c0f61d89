"""The nudge of a placebo: as small as rounding, and never lost."""

import torch

from stabkit.branch.nudges import nudge


def test_every_weight_of_a_matrix_moves_by_one_unit_in_the_last_place() -> None:
    weights = {"w": torch.randn(50, 40), "bias": torch.randn(40), "zeros": torch.zeros(3, 3)}
    weights["w"][0, 0] = 0
    before = {name: tensor.clone() for name, tensor in weights.items()}
    nudge(weights, 7)
    assert weights["bias"].equal(before["bias"])
    assert weights["zeros"].equal(before["zeros"])
    bits, old = weights["w"].view(torch.int32), before["w"].view(torch.int32)
    assert (bits - old).abs().flatten().tolist() == [0] + [1] * 1999
    up = (weights["w"] > before["w"]).double().mean()
    assert 0.4 < up < 0.6


def test_each_number_is_another_nudge_and_the_same_one_again() -> None:
    found = []
    for number in (1, 2, 1):
        weights = {"w": torch.ones(20, 20)}
        nudge(weights, number)
        found.append(weights["w"])
    assert found[0].equal(found[2])
    assert not found[0].equal(found[1])


def test_no_placebo_is_the_control_again() -> None:
    """Rounding swallows the change of one small weight: a layer of small weights shows it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight[:, 1:] *= 1e-6  # only some weights tell in the sums
        x = torch.randn(8, 64)
        before = layer(x)
        for number in range(20):
            moved = {"w": layer.weight.detach().clone()}
            nudge(moved, number)
            assert not torch.equal(x @ moved["w"].T, before)
