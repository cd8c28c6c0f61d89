"""Each basic signal against Python's own floats."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import Lamb
from torch import nn
from torch.optim import Optimizer

import stabkit
from stabkit.monitor.model_blocks import ModelBlocks
from stabkit.monitor.signals.signal import SIGNALS
from tests.monitor.expected import Expected, elements, norm
from tests.monitor.twins import ORDER, Net, layer_of, net


def run(
    folder: Path,
    make: Callable[[Any], Optimizer],
    steps: int = 12,
    change: Callable[[Optimizer, Net, int], None] = lambda *_: None,
    clip: Callable[[Net], float] = lambda _: 1.0,
) -> Expected:
    """`change` comes between the backward pass and the step; `clip` is the optimizer's own."""
    model = net()
    optimizer = make(model.parameters())
    expected = Expected(model, [optimizer], layer_of, ORDER)
    generator = torch.Generator().manual_seed(1)
    with stabkit.Monitor(model, optimizer, folder, flush_every=5, full_every=1):
        for step in range(steps):
            x = torch.randn(8, 3, generator=generator)
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            change(optimizer, model, step)
            expected.row()
            expected.gradients(optimizer)
            expected.before(optimizer)
            own = clip(model)
            optimizer.step()
            expected.after(optimizer, clip=own)
    return expected


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)


def test_every_signal_of_adamw_is_the_oracles(tmp_path: Path) -> None:
    expected = run(tmp_path, adamw)
    expected.check(tmp_path)
    of_layers = {name for name, signal in SIGNALS.items() if hasattr(signal, "reads")}
    basic = {name for name in of_layers if SIGNALS[name].level == "basic"} | {"update_ratio"}
    assert basic <= expected.rows[0]["head"].keys()  # none is forgotten
    frozen, empty = expected.rows[3]["frozen"], expected.rows[3]["empty"]
    assert frozen["param_norm"] is not None
    assert frozen["grad_norm"] is frozen["update_norm"] is empty["param_norm"] is None
    run_ = stabkit.open_run(tmp_path)
    totals = [math.hypot(*(r["grad_norm"] or 0.0 for r in row.values())) for row in expected.rows]
    assert run_.scalar("grad_norm_total").tolist() == pytest.approx(totals, rel=1e-5)
    assert run_.log().empty


def own_clip(model: Net) -> float:
    grads = [float(x) for p in model.parameters() if p.grad is not None for x in p.grad.flatten()]
    return max(1.0, norm(grads) / 0.05)


OPTIMIZERS: dict[str, tuple[Callable[[Any], Optimizer], Callable[[Net], float]]] = {
    "adam": (lambda p: torch.optim.Adam(p, betas=(0.0, 0.95), eps=0.0), lambda _: 1.0),
    "large eps": (lambda p: torch.optim.Adam(p, eps=1e-2, foreach=True), lambda _: 1.0),
    "beta2 0": (lambda p: torch.optim.Adam(p, lr=1e-4, betas=(0.9, 0.0)), lambda _: 1.0),
    "beta2 near 1": (lambda p: torch.optim.Adam(p, betas=(0.9, 0.9999)), lambda _: 1.0),
    # the formula names the second moment, not the largest so far that amsgrad divides by
    "amsgrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), lambda _: 1.0),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=0.01), lambda _: 1.0),
    "radam": (lambda p: torch.optim.RAdam(p, lr=0.01), lambda _: 1.0),
    "lamb": (lambda p: Lamb(p, lr=0.01, max_grad_norm=None), lambda _: 1.0),
    "lamb that clips": (lambda p: Lamb(p, lr=0.01, max_grad_norm=0.05), own_clip),
    "rmsprop": (lambda p: torch.optim.RMSprop(p), lambda _: 1.0),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda _: 1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_the_adam_family_and_not(name: str, tmp_path: Path) -> None:
    make, clip = OPTIMIZERS[name]
    expected = run(tmp_path, make, 7, clip=clip)
    expected.check(tmp_path)
    has_moment = expected.rows[0]["stem"]["adam_rms"] is not None
    assert has_moment == (name not in ("rmsprop", "sgd"))


@pytest.mark.parametrize("kind", [tuple, list])
def test_betas_and_eps_may_change_midway(kind: type, tmp_path: Path) -> None:
    """A list may be changed in place."""

    def make(parameters: Any) -> Optimizer:
        optimizer = torch.optim.AdamW(parameters)
        optimizer.param_groups[0]["betas"] = kind([0.9, 0.99])
        return optimizer

    def change(optimizer: Optimizer, model: Net, step: int) -> None:
        group = optimizer.param_groups[0]
        if step == 3 and kind is list:
            group["betas"][1] = 0.9
        elif step == 3:
            group["betas"] = (0.9, 0.9)
        if step == 5:
            group["eps"] = 1e-3

    expected = run(tmp_path, make, 8, change)
    # the oracle corrects with the beta2 of the moment, as torch does
    expected.check(tmp_path)
    assert stabkit.open_run(tmp_path).scalar("beta2").to_dict() == {0: 0.99, 3: 0.9}


def test_zeros_and_non_finite_elements_are_counted(tmp_path: Path) -> None:
    def change(optimizer: Optimizer, model: Net, step: int) -> None:
        stem, head = model.stem.weight.grad, model.head.weight.grad
        assert stem is not None
        assert head is not None
        if step == 2:
            stem[:3] = 0
        if step == 3:
            stem[0, 0], stem[1, 1], head[0, 0] = math.inf, -math.inf, math.nan
            head[0, 1] = math.inf

    expected = run(tmp_path, lambda p: torch.optim.SGD(p, lr=0.0), 4, change)
    expected.check(tmp_path)
    assert expected.rows[3]["stem"]["nonfinite_count"] == 2
    assert stabkit.open_run(tmp_path).scalar("nonfinite_layers").tolist() == [0, 0, 0, 2]


def test_counts_are_exact_beyond_the_integers_of_float32(tmp_path: Path) -> None:
    layer = nn.Linear(4099, 4099, bias=False)  # 16.8 million elements, an odd number above 2^24
    layer.weight.grad = torch.ones_like(layer.weight)
    layer.weight.grad[0, :6] = 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    signals = ["zero_count", "nonfinite_count"]
    with stabkit.Monitor(layer, optimizer, tmp_path, signals=signals, flush_every=1, full_every=1):
        optimizer.step()
    row = stabkit.open_run(tmp_path).signals().iloc[0]
    assert row["zero_count"] == 6
    assert row["nonfinite_count"] == 0


SIZES = (3e38, 1e20, 1e15, 1e-15, 1e-24, 1e-37)
"""Squares of float32 end at 3e38, and begin at 1e-45 with few digits."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_and_small_values_have_norms(dtype: torch.dtype, tmp_path: Path) -> None:
    """A norm must not say inf of finite elements, nor 0 of any other: that would be an event."""
    layers = nn.Sequential(*(nn.Linear(30, 30, bias=False, dtype=dtype) for _ in SIZES))
    grads = []
    for layer, size in zip(layers, SIZES, strict=True):
        values = torch.linspace(0.01, 1, 900, dtype=torch.float64).reshape(30, 30) * size
        layer.weight.data = values.flip(0).to(dtype)
        layer.weight.grad = values.to(dtype)
        grads.append(norm(elements(layer.weight.grad)))
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.5)
    before = [elements(layer.weight) for layer in layers]
    with stabkit.Monitor(layers, optimizer, tmp_path, full_every=1):
        optimizer.step()
    run = stabkit.open_run(tmp_path)
    rows = run.signals()
    assert run.scalar("nonfinite_layers").tolist() == [0]
    assert run.log_entries() == []
    params = [norm(values) for values in before]
    updates = [
        norm(a - b for a, b in zip(old, elements(layer.weight), strict=True))
        for old, layer in zip(before, layers, strict=True)
    ]
    limit = torch.finfo(torch.float32).max
    for name, expected in [("grad_norm", grads), ("param_norm", params), ("update_norm", updates)]:
        # a column is float32: what is beyond it is infinite there, and still no event
        expected = [value if value <= limit else math.inf for value in expected]
        assert rows[name].tolist() == pytest.approx(expected, rel=1e-5, abs=0)
    assert rows["update_ratio"].tolist() == pytest.approx(
        [a / b for a, b in zip(updates, params, strict=True)], rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "eps", "expected"),
    # a first step's second moment is that of its gradient; eps is the least it is divided by
    [(1e19, 1e-8, 1.0), (3e19, 1e-8, 1.0), (1e-15, 0.0, 1.0), (1e-24, 1e-8, 1e-16)],
)
def test_adam_rms_of_large_and_small_gradients(
    size: float, eps: float, expected: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    layer = nn.Linear(30, 30, bias=False, dtype=dtype)
    layer.weight.grad = torch.full_like(layer.weight, size)
    optimizer = torch.optim.AdamW(layer.parameters(), eps=eps)
    with stabkit.Monitor(layer, optimizer, tmp_path, full_every=1):
        optimizer.step()
    found = stabkit.open_run(tmp_path).signals()["adam_rms"].item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_both_ways_of_adding_squares_agree() -> None:
    tensors = [torch.randn(n) * size for n, size in [(700, 1e25), (0, 1), (3, 1), (513, 1e-30)]]
    blocks = ModelBlocks(tensors)
    (part,) = blocks.parts
    part.fill(part.room, [*tensors[:3], None])
    part.show(part.fill(part.room, tensors))
    expected = [norm(elements(t)) ** 2 for t in tensors]
    for rows in (part._squares_by_row(), part._squares_by_tensor()):
        assert rows.dtype == torch.float64
        found = blocks.of_units([{0: rows}], "sum")[0].tolist()
        assert found == pytest.approx(expected, rel=1e-6, abs=0)
