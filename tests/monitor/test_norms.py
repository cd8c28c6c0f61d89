import math

import pytest
import torch

from stabkit.monitor.norms import LayerNorms


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,), (2, 2, 2), (), (1000,)]
    values = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    for p in values:
        p.grad = (torch.randn(p.shape, generator=generator) * 3).to(dtype)
    return values


def oracle(values: list[torch.nn.Parameter], layer: list[int], number: int) -> list[float]:
    """Element by element in Python floats."""
    members = [p for p, i in zip(values, layer, strict=True) if i == number]
    grads = [float(g) for p in members if p.grad is not None for g in p.grad.flatten()]
    weights = [float(w) for p in members for w in p.detach().flatten()]
    norm = math.sqrt(sum(g * g for g in grads)) if grads else -1.0
    largest = max(abs(g) for g in grads) if grads else -1.0
    return [norm, largest, math.sqrt(sum(w * w for w in weights))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_equal_a_loop_over_every_element(dtype: torch.dtype) -> None:
    values, layer = parameters(dtype), [1, 0, 1, 2, 0]
    measured = LayerNorms(values, layer, 3).measure()
    assert measured.dtype == torch.float32
    for number in range(3):
        # float32 accumulation over 1,000 elements: relative error well below 1000 * 2^-24
        expected = torch.tensor(oracle(values, layer, number))
        torch.testing.assert_close(measured[:, number], expected, rtol=6e-5, atol=0)


def test_a_layer_without_gradient_is_marked_and_may_thaw_later() -> None:
    values = parameters()
    values[3].grad = None
    norms = LayerNorms(values, [0, 0, 1, 2, 1], 3)
    assert norms.measure()[:2, 2].tolist() == [-1.0, -1.0]
    values[3].grad = torch.tensor(-5.0)
    assert norms.measure()[:2, 2].tolist() == [5.0, 5.0]
    for p in values:
        p.grad = None
    assert (norms.measure()[:2] == -1).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_show_in_their_own_layer_only(bad: float) -> None:
    values = parameters()
    grad = values[0].grad
    assert grad is not None
    grad[1, 2] = bad
    measured = LayerNorms(values, [0, 1, 1, 2, 2], 3).measure()
    assert not measured[:2, 0].isfinite().any()
    assert measured[:, 1:].isfinite().all()


def test_half_precision_gradients_do_not_overflow() -> None:
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    p.grad = torch.full((4,), 6e4, dtype=torch.float16)  # its square is far above 65,504
    norm = float(LayerNorms([p], [0], 1).measure()[0, 0])
    assert norm == pytest.approx(2 * float(p.grad[0]), rel=1e-6)
