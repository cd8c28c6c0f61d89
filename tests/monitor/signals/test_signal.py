"""The table of signals, and a signal of one's own in ten lines."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import stabkit
from stabkit.cli import main
from stabkit.monitor import monitor as _all  # noqa: F401 (importing it registers every signal)
from stabkit.monitor.blocks import Blocks
from stabkit.monitor.model_blocks import ModelBlocks
from stabkit.monitor.signals.signal import LEVELS, SIGNALS, Signal, choose

LINES = """
import stabkit

@stabkit.register_signal
class GradL4(stabkit.LayerSignal):
    name = "grad_l4"
    formula = "mean(g^4)^(1/4)"
    reads = "gradients"
    def of_blocks(self, blocks):
        return blocks.values.pow(4).sum(1)
    def of_layer(self, total, count):
        return (total / count).pow(0.25)
"""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[Signal]]]:
    """Return the table of signals, which a test may add to."""
    before = dict(SIGNALS)
    yield SIGNALS
    SIGNALS.clear()
    SIGNALS.update(before)


def two_steps(folder: Path, signals: object) -> tuple[stabkit.Run, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    grads = []
    with stabkit.Monitor(model, optimizer, folder, signals=signals, full_every=1):  # type: ignore[arg-type]
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(7, 3)).square().sum().backward()
            named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            grads.append({n: g.clone() for n, g in named.items()})
            optimizer.step()
    return stabkit.open_run(folder), grads


def test_a_signal_of_ones_own_in_ten_lines(tmp_path: Path, own: dict[str, type[Signal]]) -> None:
    exec(LINES, {"__name__": "my_signals"})
    run, grads = two_steps(tmp_path, ["basic", "grad_l4"])
    found = run.signals(["grad_l4"])["grad_l4"]
    expected = [
        (sum(float(x) ** 4 for n, g in of_step.items() if n[0] == layer for x in g.flatten())
         / sum(g.numel() for n, g in of_step.items() if n[0] == layer)) ** 0.25
        for of_step in grads
        for layer in "02"
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # 20 float32 fourth powers
    exec(LINES, {"__name__": "my_signals"})  # a notebook cell run again
    with pytest.raises(ValueError, match=r"'grad_l4' is taken by my_signals\.GradL4"):
        exec(LINES, {"__name__": "others_signals"})


def test_a_derived_signal_brings_what_it_derives_from(tmp_path: Path) -> None:
    class Half(stabkit.DerivedSignal):
        name = "half"
        formula = "grad_norm / 2"
        signals_of = ("grad_norm",)

        def derive(self, values: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:  # type: ignore[override]
            return values["grad_norm"] / 2

    run, _ = two_steps(tmp_path, Half)
    signals = run.signals()
    assert set(signals) == {"step", "layer", "depth", "grad_norm", "grad_max", "param_norm", "half"}
    np.testing.assert_array_equal(signals["half"], signals["grad_norm"] / 2)
    assert signals[["grad_max", "param_norm"]].isna().all(axis=None)  # columns of every part


def test_a_derived_signal_of_what_is_no_signal_is_refused() -> None:
    wrong = type("Wrong", (stabkit.DerivedSignal,), {"name": "wrong", "signals_of": ("gradnorm",)})
    with pytest.raises(ValueError, match="'gradnorm' is neither a level"):
        choose(wrong)


@pytest.mark.parametrize("name", ["", "grad norm", "1st", "step", "layer", "../x"])
def test_a_name_that_no_column_may_have_is_refused(name: str) -> None:
    signal = type("Mine", (stabkit.LayerSignal,), {"name": name})
    with pytest.raises(ValueError, match="signal name"):
        stabkit.register_signal(signal)
    assert name not in SIGNALS


def test_every_signal_says_what_it_is() -> None:
    assert {signal.level for signal in SIGNALS.values()} == set(LEVELS)
    for name, signal in SIGNALS.items():
        assert signal.name == name
        assert signal.formula, name
        assert signal.reveals, name
        assert signal.cost, name
        assert signal.unit or name in ("update_ratio", "adam_rms", "lr", "grad_scale"), name
    basic = [signal for signal in SIGNALS.values() if signal.level == "basic"]
    assert [s.name for s in basic if s.name == "loss"]


def test_what_is_asked_for_without_its_probe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"neither a level .*basic, attention.* nor a signal"):
        choose("gradnorm")
    with pytest.raises(ValueError, match=r"curvature needs probe=stabkit.Probe\(...\) with loss"):
        choose(["basic", "curvature"])
    with pytest.raises(ValueError, match=r"alignment needs .* with view2"):
        choose("alignment", stabkit.Probe(torch.zeros(2, 3)))
    of_level = {s.name for s in choose("features", stabkit.Probe(torch.zeros(2, 3)))}
    assert "probe_rank" in of_level
    assert of_level.isdisjoint({"alignment", "target_cosine", "output_grad_norm"})


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signals"]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 98
    for name, signal in SIGNALS.items():
        assert f"\n  {name} " in f"\n{listed}"
        assert signal.reveals.split()[0] in listed
    order = [listed.index(f"{level}:") for level in LEVELS]
    assert order == sorted(order)
    assert main(["signals", "adam_rms"]) == 0
    assert "1/sqrt(1-beta2)" in capsys.readouterr().out
    assert main(["signals", "adam_rmss"]) == 2
    said = capsys.readouterr().err
    assert "neither a level" in said
    assert said.endswith("nor a signal; did you mean 'adam_rms'?\n")


def test_the_command_lists_a_users_own(
    own: dict[str, type[Signal]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_signals.py").write_text(LINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    try:
        assert main(["signals", "grad_l4", "--module", "my_signals"]) == 0
    finally:
        sys.modules.pop("my_signals", None)
    listed = capsys.readouterr().out
    assert "mean(g^4)^(1/4)" in listed
    assert listed.startswith("own\n")
    assert main(["signals", "--module", "no_signals"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no_signals: cannot be imported" in said.err


def test_blocks_and_modules_are_where_a_signal_finds_them() -> None:
    assert isinstance(sys.modules["stabkit.monitor.signals.signal"], ModuleType)
    blocks = ModelBlocks([torch.zeros(3), torch.zeros(2, 2)])
    (part,) = blocks.parts
    part.show(part.fill(part.room, [torch.tensor([1.0, -2.0, 3.0]), None]))
    assert part.values.sum() == 2
    assert blocks.of_units([{0: part.values.sum(1)}], "sum").tolist() == [[2.0, 0.0]]


@pytest.mark.lengthy
def test_no_signal_depends_on_which_others_are_measured(tmp_path: Path) -> None:
    """They share buffers: of any of them, in any order, each is what it is among all."""
    names = ["grad_norm", "grad_max", "nonfinite_count", "zero_count", "param_norm"]
    names += ["update_norm", "adam_rms"]
    whole = two_steps(tmp_path / "whole", "basic")[0].signals()
    rng = random.Random(0)
    for i in range(25):
        asked = rng.sample(names, rng.randint(1, len(names)))
        found = two_steps(tmp_path / str(i), asked)[0].signals()
        for name in asked:
            assert found[name].equals(whole[name]), (asked, name)


class View(stabkit.LayerSignal):
    name = "view"
    formula = "sum |g|"
    reads = "gradients"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return torch.cumsum(blocks.values.abs(), 1, out=blocks.scratch)[:, -1]


class Elsewhere(View):
    name = "elsewhere"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return torch.empty(len(blocks.values), device="meta")


def test_what_a_signal_leaves_in_the_scratch_is_its_own(tmp_path: Path) -> None:
    run, grads = two_steps(tmp_path, ["basic", View])
    expected = [
        sum(float(g.abs().sum()) for n, g in of_step.items() if n[0] == layer)
        for of_step in grads
        for layer in "02"
    ]
    np.testing.assert_allclose(run.signals()["view"], expected, rtol=1e-5)  # 20 float32 sums


def test_a_signal_on_another_device_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    whole = two_steps(tmp_path / "whole", "basic")[0].signals()
    run, _ = two_steps(tmp_path / "with", ["basic", Elsewhere])
    assert [event["name"] for event in run.log_entries()] == ["elsewhere"]
    assert run.signals().drop(columns="elsewhere").equals(whole)


def test_options_and_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="flush_every must be 1 step or more, got 0"):
        stabkit.Monitor(model, optimizer, tmp_path, flush_every=0, full_every=1)
    step = type("Step", (View,), {"name": "step"})
    with pytest.raises(ValueError, match="signal name 'step'"):
        stabkit.Monitor(model, optimizer, tmp_path, signals=step, full_every=1)
    named = nn.Module()
    named.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="weight is complex"):
        stabkit.Monitor(named, torch.optim.SGD(named.parameters(), lr=0.1), tmp_path, full_every=1)
    with stabkit.Monitor(
        model, optimizer, tmp_path, full_every=1
    ):  # nothing of it holds the folder
        pass
