"""Norms by hand, and what a run folder holds beside them."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

import stabkit

Norms = dict[str, float]


def grad_norms(model: nn.Module, scale: float = 1.0) -> Norms:
    """Return the norm of every parameter's gradient, added up in float64; None counts as absent."""
    return {
        name: float((p.grad.detach().double() / scale).square().sum())
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_recorded(
    folder: Path, seen: dict[int, Norms], layers: Mapping[str, str]
) -> pd.DataFrame:
    """Every step of `seen`, none else, has the gradient norm of each layer of `layers`.

    `layers`: of each layer what its parameters' names begin with. Tolerance: the record adds
    float32 squares; of at most 4096 elements that is about sqrt(4096) roundings of 6e-8.
    """
    signals = stabkit.open_run(folder).signals()
    table = signals.pivot(index="step", columns="layer", values="grad_norm")
    assert table.index.tolist() == sorted(seen)
    assert set(table.columns) == set(layers)
    for layer, begin in layers.items():
        expected = [_norm(seen[step], begin) for step in table.index]
        np.testing.assert_allclose(table[layer], expected, rtol=1e-5, err_msg=layer)
    return table


def _norm(norms: Norms, begin: str) -> float:
    parts = [v for name, v in norms.items() if name.startswith(f"{begin}.") or name == begin]
    return math.sqrt(sum(parts)) if parts else math.nan


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))
