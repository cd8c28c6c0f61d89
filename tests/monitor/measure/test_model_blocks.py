"""A model in parts: the same values, whatever the parts, and nothing of the training is held."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.monitor import model_blocks
from stabkit.monitor.model_blocks import ModelBlocks
from tests.monitor.measure.test_layer_measure import adamw, run


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one row; every tensor of a row or more is a part of its own, its rest elsewhere."""
    monkeypatch.setattr(model_blocks, "PART", 256)
    monkeypatch.setattr(model_blocks, "OWN", 256)


def test_the_values_of_small_parts_are_the_oracles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    run(tmp_path, adamw).check(tmp_path)


def conv() -> nn.Module:
    """Return gradients in another order (channels last), of another type, and expanded ones."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(64, 300), nn.Linear(300, 7)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    model[3].to(torch.bfloat16)
    return model


def rows_of(folder: Path, signals: str | list[str | type[stabkit.LayerSignal]]) -> pd.DataFrame:
    model = conv()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with stabkit.Monitor(model, optimizer, folder, signals=signals, flush_every=2, full_every=1):
        for step in range(5):
            x = torch.randn(4, 16, 3, 3, generator=torch.Generator().manual_seed(step))
            hidden = model[:3](x.to(memory_format=torch.channels_last))
            model.zero_grad()
            (hidden.square().mean() + model[3](hidden.bfloat16()).sum()).backward()
            optimizer.step()
    return stabkit.open_run(folder).signals()


class Copied(stabkit.LayerSignal):
    """A signal that is not ours is shown copies."""

    name, formula, reads = "copied", "sum of squares", "gradients"

    def of_blocks(self, blocks: "stabkit.monitor.blocks.Blocks") -> Tensor:
        return blocks.values.double().square().sum(1)


@pytest.mark.lengthy
def test_values_are_the_same_bits_whatever_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(tmp_path / "whole", "basic")
    with_copy = rows_of(tmp_path / "copy", ["basic", Copied])
    cut_small(monkeypatch)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "cut", "basic"), whole)
    pd.testing.assert_frame_equal(with_copy.drop(columns="copied"), whole)
    assert with_copy["copied"].tolist() == pytest.approx((whole["grad_norm"] ** 2).tolist())


@pytest.mark.lengthy
def test_no_gradient_is_held_after_the_step(tmp_path: Path) -> None:
    model = nn.Linear(256, 256)
    optimizer = torch.optim.AdamW(model.parameters())
    for signals in ("basic", "grad_norm"):
        with stabkit.Monitor(model, optimizer, tmp_path / signals, signals=signals, full_every=1):
            model(torch.ones(2, 256)).sum().backward()
            assert model.weight.grad is not None
            memory = weakref.ref(model.weight.grad.untyped_storage())
            optimizer.step()
            optimizer.zero_grad()
            gc.collect()
            assert memory() is None


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_bundles_add_up_to_what_the_units_have(
    combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU adds up in two rounds, because adding at an index has no fixed order there."""
    monkeypatch.setattr(model_blocks, "BUNDLE", 3)
    blocks = ModelBlocks([torch.zeros(n) for n in (2000, 0, 5, 1300, 256)], in_thirds=[3])
    rows = torch.rand(2, len(blocks.of_row), dtype=torch.float64)
    expected = blocks.of_units([{0: rows[0]}, {0: rows[1]}], combine)
    two_rounds: Callable[..., Tensor] = model_blocks._at
    bundles = two_rounds(rows, blocks._bundles, combine)
    found = two_rounds(bundles, blocks._index, combine)
    assert found.shape == (2, 7)
    torch.testing.assert_close(found, expected)
