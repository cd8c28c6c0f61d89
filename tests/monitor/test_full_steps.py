"""All signals at every `full_every`-th step, gradient norms at every one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.analyze.nonfinite import nonfinite_entries
from stabkit.detect import find_stale_moments
from stabkit.monitor.blocks import Blocks
from stabkit.monitor.signals.signal import SIGNALS, LayerSignal
from stabkit.store.tables import stored_table
from tests.monitor.toy import Toy

ALWAYS = {"grad_norm", "nonfinite_count"}
AT_FULL = {"grad_max", "zero_count", "param_norm", "update_norm", "update_ratio", "adam_rms"}


def cells(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Return what is stored of each step and layer; None is null, and NaN is not."""
    rows = stored_table(folder / "layers", "layers").to_pylist()
    return {(row["step"], row["layer"]): row for row in rows}


@pytest.mark.parametrize("options", [{}, {"full_every": 3}, {"full_every": 4, "flush_every": 7}])
def test_full_steps_hold_the_same_bits_and_the_others_null(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for name, given in (("all", {"full_every": 1}), ("some", {"full_every": 10} | options)):
        toy = Toy()
        with toy.monitor(tmp_path / name, **given) as monitor:
            toy.steps(23, monitor)
        toy.assert_undisturbed()
    every, full = cells(tmp_path / "all"), options.get("full_every", 10)
    some = cells(tmp_path / "some")
    assert every.keys() == some.keys() == {(s, layer) for s in range(23) for layer in ("0", "2")}
    for (step, layer), row in some.items():
        names = ALWAYS | AT_FULL if step % full == 0 else ALWAYS
        expected = {n: every[step, layer][n] for n in names} | dict.fromkeys(AT_FULL - names)
        assert {n: row[n] for n in ALWAYS | AT_FULL} == expected, (step, layer)
    scalars = [stabkit.open_run(tmp_path / name).scalars() for name in ("all", "some")]
    keys = ["name", "step"]
    one, other = (s.astype({"name": str}).sort_values(keys, ignore_index=True) for s in scalars)
    pd.testing.assert_frame_equal(one, other)


def test_the_default_is_what_the_documentation_says(tmp_path: Path) -> None:
    toy = Toy()
    with stabkit.Monitor(toy.model, toy.optimizer, tmp_path) as monitor:
        toy.steps(11, monitor)
    found = stabkit.open_run(tmp_path).signals()
    assert found.dropna(subset="adam_rms")["step"].unique().tolist() == [0, 10]
    of_layers = {name for name, one in SIGNALS.items() if issubclass(one, LayerSignal)}
    rare = {name for name in of_layers if not SIGNALS[name].every_step}  # type: ignore[attr-defined]
    assert rare == AT_FULL - {"update_ratio"}


@pytest.mark.parametrize("first", [7, 8])
def test_a_resumed_run_measures_at_the_steps_of_the_unbroken_one(
    tmp_path: Path, first: int
) -> None:
    for name, starts in (("whole", (0,)), ("resumed", (0, first))):
        toy = Toy()
        for start, end in zip(starts, (*starts[1:], 14), strict=True):
            with toy.monitor(tmp_path / name, full_every=4, first_step=start) as monitor:
                toy.steps(end - start, monitor)
    assert cells(tmp_path / "resumed") == cells(tmp_path / "whole")


def test_a_signal_of_ones_own_is_measured_at_every_step(tmp_path: Path) -> None:
    class UpdateMax(LayerSignal):
        name, formula, reads, combine = "update_max", "max |update|", "updates", "max"

        def of_blocks(self, blocks: Blocks) -> Tensor:
            return blocks.values.abs().amax(1)

    toy, moved = Toy(), []
    with toy.monitor(tmp_path, full_every=4, signals=["basic", UpdateMax]) as monitor:
        for _ in range(9):
            before = toy.state()
            toy.steps(1, monitor)
            moved.append(float((before - toy.state()).abs().max()))
    found = stabkit.open_run(tmp_path).signals()
    assert found.groupby("step")["update_max"].max().tolist() == moved
    assert found.dropna(subset="update_norm")["step"].unique().tolist() == [0, 4, 8]


def test_accumulation_clipping_and_several_optimizers(tmp_path: Path) -> None:
    """A step of one optimizer alone leaves the other null; a full one has both."""
    toy = Toy()
    last = torch.optim.SGD(toy.model[2].parameters(), lr=0.1)
    first = torch.optim.AdamW(toy.model[0].parameters(), lr=0.01)
    with stabkit.Monitor(toy.model, [first, last], tmp_path, full_every=3) as monitor:
        for _ in range(7):
            for _ in range(2):
                toy.model(torch.ones(4, 4)).square().mean().backward()
            monitor.before_clipping()
            nn.utils.clip_grad_norm_(toy.model.parameters(), 0.01)
            first.step()
            last.step()
            toy.model.zero_grad()
    found = stabkit.open_run(tmp_path).signals()
    assert len(found) == 14
    assert (found["grad_norm"] > 0.01).all()
    known = found.dropna(subset="update_norm")
    assert known[["step", "layer"]].astype(str).to_numpy().tolist() == [
        [str(step), layer] for step in (0, 3, 6) for layer in ("0", "2")
    ]
    assert known["adam_rms"].notna().tolist() == [True, False] * 3  # the last layer's is SGD


@pytest.mark.parametrize("full_every", [1, 10])
def test_steps_that_a_scaler_skips_are_no_event(tmp_path: Path, full_every: int) -> None:
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    found: list[Any] = []
    with toy.monitor(tmp_path, scaler=scaler, full_every=full_every) as monitor:
        monitor.on("nonfinite", found.append)
        for _ in range(14):
            toy.optimizer.zero_grad()
            scaler.scale(toy.model(torch.ones(4, 4)).square().mean() * 2.0**6).backward()
            scaler.step(toy.optimizer)
            scaler.update()
    run = stabkit.open_run(tmp_path)
    assert not np.isfinite(run.scalar("grad_norm_total")[0])
    assert np.isfinite(run.scalar("grad_norm_total")[13])
    assert not found
    assert not [entry for entry in run.log_entries() if entry["kind"] == "nonfinite"]


def test_weights_lost_beside_a_scaler_are_told_at_the_next_full_step(tmp_path: Path) -> None:
    """The loop steps by itself what the scaler would have skipped, in step 5."""
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with toy.monitor(tmp_path, scaler=scaler, full_every=4) as monitor:
        for step in range(12):
            toy.optimizer.zero_grad()
            scaler.scale(toy.model(torch.ones(4, 4)).square().mean()).backward()
            scaler.unscale_(toy.optimizer)
            if step == 5:
                toy.model[0].weight.grad[0, 0] = math.nan
            toy.optimizer.step()
            scaler.update()
            monitor.log(other=0.0)
    (entry,) = [e for e in stabkit.open_run(tmp_path).log_entries() if e["kind"] == "nonfinite"]
    assert (entry["step"], entry["signal"]) == (8, "param_norm")


@pytest.mark.parametrize(("lost_at", "signal", "layers"), [(8, "param_norm", ["2"]), (7, "", [])])
def test_lost_weights_are_named_at_a_full_step(
    tmp_path: Path, lost_at: int, signal: str, layers: list[str]
) -> None:
    """Between full steps nobody looks at the weights: what is named is the loss."""
    toy = Toy()
    with toy.monitor(tmp_path, full_every=4) as monitor:
        toy.steps(lost_at, monitor)
        toy.model[2].bias.data[0] = math.nan
        toy.steps(6, monitor)
    run = stabkit.open_run(tmp_path)
    (entry,) = [e for e in run.log_entries() if e["kind"] == "nonfinite"]
    assert entry["step"] == lost_at
    assert (entry["signal"], entry["layers"]) == (signal or "loss", layers)


@pytest.mark.parametrize(("full_every", "lost"), [(1, 0), (4, 0), (4, 1)])
def test_what_was_not_measured_is_no_lost_weight(
    tmp_path: Path, full_every: int, lost: int
) -> None:
    """An overflow that came back, unless the weights of a full step were not finite."""
    toy = Toy()
    with toy.monitor(tmp_path, full_every=full_every) as monitor:
        toy.steps(5, monitor)
        kept = [p.detach().clone() for p in toy.model.parameters()]
        toy.model[0].weight.register_hook(lambda grad: grad * math.inf)
        toy.optimizer.param_groups[0]["lr"] = 0.0
        hook = toy.optimizer.register_step_pre_hook(_drop_infinite)
        toy.steps(1)
        hook.remove()
        toy.model[0].weight._backward_hooks.clear()
        for p, before in zip(toy.model.parameters(), kept, strict=True):
            p.data.copy_(before)
        toy.steps(2)
        if lost:
            toy.model[0].bias.data[0] = math.nan
        toy.steps(1)
        for p, before in zip(toy.model.parameters(), kept, strict=True):
            p.data.copy_(before)
        toy.steps(3)
    run = stabkit.open_run(tmp_path)
    assert not np.isfinite(run.signals()["grad_norm"]).all()
    entries, overflows = nonfinite_entries(run, [])
    steps = [[int(e["step"]) for e in found] for found in (entries, overflows)]
    assert 5 in steps[0 if lost else 1]


def _drop_infinite(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Leave out what is not finite, as a loop does that looks before it steps."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None


@pytest.mark.parametrize(("burst", "onsets"), [(range(40, 60), [40]), ([42], []), ([45], [45])])
def test_stale_moments_are_found_at_full_steps(
    tmp_path: Path, burst: Any, onsets: list[int]
) -> None:
    """A gradient a hundred times as large: found where it is looked at, online and afterwards."""
    found: dict[int, list[Any]] = {1: [], 5: []}
    for full_every, events in found.items():
        toy = Toy()
        with toy.monitor(tmp_path / str(full_every), full_every=full_every) as monitor:
            monitor.on("stale_moments", events.append)
            for step in range(60):
                toy.optimizer.zero_grad()
                scale = 100.0 if step in burst else 1.0
                (toy.model(torch.ones(4, 4)).square().mean() * scale).backward()
                toy.optimizer.step()
    assert [event.step for event in found[1]] == [min(burst)]
    assert [event.step for event in found[5]] == onsets
    tables = [stabkit.open_run(tmp_path / str(every)).signals() for every in (1, 5)]
    for layer in ("0", "2"):
        every, some = (rows[rows["layer"].astype(str) == layer] for rows in tables)
        every = every[every["step"] % 5 == 0]
        of_all, of_some = (
            find_stale_moments(rows["step"], rows["adam_rms"], 0.999) for rows in (every, some)
        )
        pd.testing.assert_frame_equal(of_some, of_all)
        assert of_some["onset"].tolist() == onsets


def test_who_asks_for_stale_moments_hears_which_steps_are_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for full_every in (1, 10):
        with Toy().monitor(tmp_path / str(full_every), full_every=full_every) as monitor:
            monitor.on("spike", print)
            for action in (print, "mark"):
                monitor.on("stale_moments", action)
    (said,) = caplog.messages
    assert "10: at step 0: stale_moments are looked for at every 10 steps only" in said
    assert "full_every=1" in said


@pytest.mark.parametrize("full_every", [0, -1])
def test_an_interval_below_one_is_refused(tmp_path: Path, full_every: int) -> None:
    with pytest.raises(ValueError, match=f"full_every must be 1 step or more .*got {full_every}"):
        Toy().monitor(tmp_path / "run", full_every=full_every)
    assert not (tmp_path / "run").exists()


def test_stale_moments_are_refused_without_the_signal_that_shows_them(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, signals="grad_norm") as monitor:
        with pytest.raises(ValueError, match=r"needs the signal adam_rms, .* measures grad_norm: "):
            monitor.on("stale_moments", "log")
        monitor.on("spike", "log")
