"""What is found online is what is found afterwards, and what was asked for is done, once."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import stabkit
from stabkit.detect import (
    find_bursts,
    find_collapse,
    find_dips,
    find_spikes,
    find_stale_moments,
    online_dips,
)
from stabkit.detect.bursts import GAP
from stabkit.detect.simulate import Burst, Planted, SimulatedLayers, layers, simulate_curve
from stabkit.detect.simulate.layers import NAMES
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.events import OnlineEvent
from stabkit.monitor.react.reactions import KINDS, Reactions
from stabkit.monitor.react.watches import SpikeWatch
from stabkit.rundir import RunDir
from stabkit.store.background import Background
from stabkit.store.writer import Writer
from tests.train.processes import results

LAYERS = [f"blocks.{i}" for i in range(5)]
FACTS = {"signal": "grad_norm", "layers": [], "ratio": 7.0}
BETA2 = 0.95


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model.requires_grad_()


def reactions(folder: Path, now: int = 0, optimizer: Any = None, **options: Any) -> Reactions:
    model = small_model()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), betas=(0.9, BETA2))
    parameter = optimizer.param_groups[0]["params"][0]
    layers = {layer: [parameter] for layer in LAYERS}
    out = writing(folder, options.get("strict", False))
    return Reactions(RunDir(folder), model, [optimizer], layers, lambda: now, out, **options)


OUT: dict[Path, Background] = {}


def writing(folder: Path, strict: bool = False) -> Background:
    OUT[folder] = Background(RunDir(folder), Writer(folder, "test"), strict, lambda: None)
    return OUT[folder]


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    while OUT:
        OUT.popitem()[1].close()


def events_of(folder: Path) -> list[dict[str, Any]]:
    if folder in OUT:
        OUT[folder].wait()
    return [{k: v for k, v in e.items() if k != "time"} for e in RunDir(folder).read_entries()]


def find(
    watched: Reactions,
    steps: np.ndarray,
    layers: list[str],
    values: dict[str, np.ndarray],
    scalars: dict[str, tuple[np.ndarray, np.ndarray]],
    measured: dict[str, np.ndarray] | None = None,
) -> list[OnlineEvent]:
    """Without `measured`, a value is measured if it is not NaN."""
    if measured is None:
        measured = {name: ~np.isnan(table) for name, table in values.items()}
    return watched.find(Rows(steps, layers, values, measured, scalars))


def in_intervals(rng: np.random.Generator, size: int) -> list[slice]:
    cuts = [0, *np.unique(rng.integers(1, size, size=rng.integers(0, 30))).tolist(), size]
    return [slice(a, b) for a, b in pairwise(cuts)]


def feed(
    found: Reactions,
    parts: list[slice],
    steps: np.ndarray,
    values: dict[str, np.ndarray],
    scalars: dict[str, np.ndarray] | None = None,
    measured: dict[str, np.ndarray] | None = None,
) -> list[OnlineEvent]:
    scalars = scalars or {}
    return [
        event
        for part in parts
        for event in find(
            found,
            steps[part],
            LAYERS,
            {name: table[part] for name, table in values.items()},
            {name: (steps[part], series[part]) for name, series in scalars.items()},
            {name: table[part] for name, table in measured.items()} if measured else None,
        )
    ]


def spiky(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, layers] with bursts that travel, levels that shift, and holes."""
    logs = 0.2 * rng.normal(size=(size, len(LAYERS)))
    for at in rng.integers(0, size, size=12):
        for layer in range(len(LAYERS)):
            first = at + int(rng.integers(0, 12))
            logs[first : first + int(rng.choice([1, 2, 30, 70])), layer] += rng.choice([0, 4, 8])
    values = np.exp(logs)
    values[rng.random(values.shape) < 0.02] = rng.choice([np.nan, np.inf, 0.0])
    return values


def expected_bursts(find: Any, steps: np.ndarray, values: np.ndarray) -> list[tuple[int, str]]:
    """Return onset and first layers of each burst that takes every spike that it may.

    There are as many as `find_bursts` has, which may give a late spike to the next burst.
    """
    found = [
        find(steps, values[:, i]).assign(layer=layer, depth=i) for i, layer in enumerate(LAYERS)
    ]
    table = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
    if "ratio" not in table:
        table["ratio"] = table["height"]
    if "flagged" in table:  # an event is told when its first value is flagged
        table["onset"] = table["flagged"]
    bursts: list[dict[int, list[str]]] = []
    for step, rows in table.sort_values("depth").groupby("onset"):
        inside = {layer for layers in bursts[-1].values() for layer in layers} if bursts else set()
        if not bursts or step - max(bursts[-1]) > GAP or inside & set(rows["layer"]):
            bursts.append({})
        bursts[-1][int(step)] = rows["layer"].tolist()
    assert len(find_bursts(table)) == len(bursts)
    return [(min(burst), ", ".join(burst[min(burst)])) for burst in bursts]


@pytest.mark.parametrize("seed", range(6))
def test_spikes_are_those_that_the_detector_finds_afterwards(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 700
    steps = int(rng.integers(0, 100)) + np.cumsum(rng.integers(1, 3, size=size))
    values, loss = spiky(rng, size), spiky(rng, size)[:, 0]
    watched = reactions(tmp_path)
    watched.on("spike", "log")
    found = feed(watched, in_intervals(rng, size), steps, {"grad_norm": values}, {"loss": loss})

    def find(at: np.ndarray, series: np.ndarray) -> pd.DataFrame:
        return find_spikes(at, series)

    suspected = [e for e in found if e.state == "suspected"]
    # a spike that is confirmed was suspected before
    assert all(replace(e, state="suspected") in suspected for e in found)
    of_layers = [e for e in suspected if e.facts["signal"] == "grad_norm"]
    expected = expected_bursts(find, steps, values)
    assert [(e.step, ", ".join(e.facts["layers"])) for e in of_layers] == expected
    assert [e.layer for e in of_layers] == [e.facts["layers"][0] for e in of_layers]
    of_loss = [e for e in suspected if e.facts["signal"] == "loss"]
    assert [e.step for e in of_loss] == find(steps, loss)["flagged"].tolist()
    assert len(of_layers) > 3
    assert len(of_loss) > 1


@pytest.mark.parametrize(("height", "hidden"), [(0.8, True), (4.0, False)])
def test_a_burst_of_many_layers_is_one_event_whether_or_not_each_shows_it_alone(
    tmp_path: Path, height: float, hidden: bool
) -> None:
    rng = np.random.default_rng(2)
    names = [f"blocks.{i}" for i in range(6)]
    logs = rng.normal(0, 0.1, size=(400, 6))
    logs[100:240] += rng.normal(0, 0.3, size=(140, 1))  # a restless time, which hides the burst
    logs[300:302] += height
    steps, norms = np.arange(400), np.exp(logs)
    alone = [find_spikes(steps, norms[:, i])["onset"].between(298, 302).any() for i in range(6)]
    assert any(alone) != hidden, "the subject"
    watched = reactions(tmp_path)
    watched.on("spike", "log")
    found = [
        event
        for part in in_intervals(rng, 400)
        for event in find(watched, steps[part], names, {"grad_norm": norms[part]}, {})
    ]
    late = [event for event in found if event.step >= 290]
    assert [event.step for event in late if event.state == "suspected"] == [300]
    assert late[0].facts["layers"] == names
    assert late[0].facts["ratio"] == pytest.approx(np.exp(height), rel=0.5)


def reacting_to_losses(folder: Path, kind: str, losses: dict[str, np.ndarray]) -> list[OnlineEvent]:
    """Feed losses beside quiet gradients, fifty steps at a time."""
    watched = reactions(folder)
    watched.on(kind, "log")
    steps = np.arange(400)
    quiet = np.exp(0.05 * np.random.default_rng(0).normal(size=(400, len(LAYERS))))
    parts = [slice(at, at + 50) for at in range(0, 400, 50)]
    return feed(watched, parts, steps, {"grad_norm": quiet}, losses)


@pytest.mark.parametrize("name", ["loss", "train_loss", "loss_d", "val/nll"])
def test_a_loss_is_watched_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    loss = 2 * np.exp(0.02 * np.random.default_rng(1).normal(size=400))
    lost, spiked = loss.copy(), loss.copy()
    lost[220:] = np.nan
    spiked[300:306] *= 6
    (event,) = reacting_to_losses(tmp_path / "lost", "nonfinite", {name: lost, "speed": lost})
    assert (event.step, event.facts["loss"], event.facts["layers"]) == (220, True, [])
    found = reacting_to_losses(tmp_path / "spiked", "spike", {name: spiked, "speed": spiked})
    assert [(e.step, e.state, e.facts["signal"]) for e in found] == [
        (300, "suspected", name),
        (300, "confirmed", name),
    ]


def test_two_losses_that_spike_together_are_one_spike(tmp_path: Path) -> None:
    loss = 2 * np.exp(0.02 * np.random.default_rng(1).normal(size=400))
    loss[300:306] *= 6
    found = reacting_to_losses(tmp_path, "spike", {"loss": loss, "total_loss": loss + 1})
    assert [event.state for event in found] == ["suspected", "confirmed"]


def test_a_loss_that_diverges_slowly_is_told_once_by_the_loss_that_has_a_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = np.arange(400)
    rng = np.random.default_rng(0)
    loss = (0.5 + 2 * np.exp(-at / 40)) * np.exp(0.03 * rng.normal(size=400))
    climbs = loss * np.exp(0.03 * np.clip(at - 200, 0, 60))
    for others in ({}, {"val_loss": climbs, "box_loss": climbs}):
        found = reacting_to_losses(
            tmp_path / f"{len(others)}", "departure", {"loss": climbs, **others}
        )
        (event,) = found
        assert (event.facts["signal"], event.state) == ("loss", "confirmed")
        assert event.step == pytest.approx(215, abs=25)
        assert event.facts["level"] >= 2 * event.facts["best"]
    assert (
        reacting_to_losses(tmp_path / "part", "departure", {"loss": loss, "box_loss": climbs}) == []
    )
    watched = reactions(tmp_path / "told")
    watched.on("departure", "log")
    watched.on("departure", "stop")
    watched.react([event])
    assert watched.should_stop
    assert caplog.records[-1].message.startswith(f"loss left its best level at step {event.step}: ")


def watch_layers(
    drawn: SimulatedLayers, parts: list[slice], loss: np.ndarray | None = None
) -> list[OnlineEvent]:
    watch = SpikeWatch()
    found = []
    for part in parts:
        steps, norms = np.arange(len(drawn.norms))[part], drawn.norms[part]
        values, measured = {"grad_norm": norms}, {"grad_norm": np.isfinite(norms)}
        scalars = {} if loss is None else {"loss": (steps, loss[part])}
        found += watch.rows(Rows(steps, NAMES, values, measured, scalars))
    return found


def test_a_healthy_run_suspects_spikes_and_confirms_none() -> None:
    """In noise that is skewed and common to the layers, long runs have bursts by chance."""
    found = [
        watch_layers(
            layers(seed, (), name="skewed", steps=2_000, together=0.85, neighbors=0.95),
            [slice(0, 700), slice(700, 2_000)],
            np.exp(0.1 * np.random.default_rng(seed).standard_t(5, 2_000)),
        )
        for seed in range(5)
    ]
    states = Counter(event.state for events in found for event in events)
    assert states["suspected"] >= 10
    assert states["confirmed"] == 0


def test_a_burst_is_confirmed_within_a_few_steps_however_the_rows_come() -> None:
    burst = Burst(430, 17.0, tuple(i // 2 for i in range(len(NAMES))), 3, 10.0)
    drawn = layers(3, (burst,), name="real_batch512", steps=700)
    loss = np.exp(0.03 * np.random.default_rng(0).standard_normal(700))
    loss[600:603] *= 1.5
    rng = np.random.default_rng(1)
    whole = watch_layers(drawn, [slice(0, 700)], loss)
    confirmed = [event for event in whole if event.state == "confirmed"]
    assert [event.facts["signal"] for event in confirmed] == ["grad_norm", "loss"]
    assert 425 <= confirmed[0].step <= 435
    assert confirmed[1].step == 600
    for _ in range(3):
        again = watch_layers(drawn, in_intervals(rng, 700), loss)
        assert sorted(again, key=str) == sorted(whole, key=str)
    until = [event.state for event in watch_layers(drawn, [slice(0, 440)]) if event.step >= 425]
    assert until == ["suspected", "confirmed"]


def test_a_weak_spike_that_grows_is_confirmed_later() -> None:
    logs = 0.2 * np.random.default_rng(0).standard_normal((500, 1))
    logs[400:420, 0] = np.linspace(1.4, 4.0, 20)
    watched = SpikeWatch()
    told: dict[int, list[str]] = {}
    for t in range(500):
        rows = Rows(
            np.array([t]), ["head"], {"grad_norm": np.exp(logs[t : t + 1])},
            {"grad_norm": np.ones((1, 1), dtype=bool)}, {},
        )  # fmt: skip
        for event in watched.rows(rows):
            told.setdefault(event.step, []).append(f"{event.state} at {t}")
    (states,) = [states for step, states in told.items() if step >= 400]
    assert [state.split()[0] for state in states] == ["suspected", "confirmed"]
    suspected, confirmed = (int(state.split()[-1]) for state in states)
    assert suspected < confirmed < 420


def test_a_weak_spike_is_not_confirmed_by_the_strong_one_after_it() -> None:
    logs = 0.2 * np.random.default_rng(0).standard_normal((500, 1))
    logs[400, 0], logs[430, 0] = 1.6, 8.0
    drawn = SimulatedLayers(NAMES, np.exp(np.repeat(logs, len(NAMES), axis=1)), ())
    for parts in ([slice(0, 500)], [slice(0, 420), slice(420, 500)]):
        found = [(e.step, e.state) for e in watch_layers(drawn, parts) if e.step >= 390]
        assert sorted(found) == [(400, "suspected"), (430, "confirmed"), (430, "suspected")]


def test_a_burst_that_no_layer_shows_alone_is_no_part_of_the_noise() -> None:
    rng = np.random.default_rng(2)
    logs = rng.normal(0, 0.1, size=(400, len(NAMES)))
    logs[100:240] += rng.normal(0, 0.3, size=(140, 1))  # a restless time, which hides the burst
    logs[300:302] += 0.8
    watch, norms = SpikeWatch(), np.exp(logs)
    for part in (slice(0, 303), slice(303, 400)):  # a shared spike is seen up to five steps later
        values, measured = {"grad_norm": norms[part]}, {"grad_norm": np.isfinite(norms[part])}
        watch.rows(Rows(np.arange(400)[part], NAMES, values, measured, {}))
    flagged = np.flatnonzero(watch._confirming._tails._flagged)
    assert {300, 301} <= set(flagged.tolist())
    assert flagged[flagged > 240].min() >= 296
    assert flagged.max() <= 305


def test_actions_take_confirmed_spikes_unless_suspected_ones_are_asked_for(tmp_path: Path) -> None:
    done: list[tuple[str, str]] = []
    watched = reactions(tmp_path)
    watched.on("spike", lambda event: done.append(("sure", event.state)))
    watched.on("spike", lambda event: done.append(("at once", event.state)), suspected=True)
    event = OnlineEvent("spike", 7, "norm", {}, "suspected")
    watched.react([event, replace(event, state="confirmed")])
    assert done == [("at once", "suspected"), ("sure", "confirmed")]


@pytest.mark.parametrize("seed", range(4))
def test_stale_moments_are_those_that_the_detector_finds_afterwards(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size, began = 600, 1000  # a Monitor that came to an optimizer of 200 updates at step 1200
    steps = 1200 + np.arange(size)
    values = np.abs(rng.normal(1, 0.4, size=(size, len(LAYERS))))
    values[rng.random(values.shape) < 0.01] = 2.6
    measured = rng.random(values.shape) < 0.95
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, BETA2))
    for _ in range(300):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    watched = reactions(tmp_path, now=began + 300, optimizer=optimizer)
    watched.on("stale_moments", "log")
    parts = in_intervals(rng, size)
    found = feed(watched, parts, steps, {"adam_rms": values}, measured={"adam_rms": measured})

    def find(at: np.ndarray, series: np.ndarray) -> pd.DataFrame:
        return find_stale_moments(at, series, BETA2, first_update=began)

    expected = expected_bursts(find, steps, np.where(measured, values, np.nan))
    assert [(e.step, ", ".join(e.facts["layers"])) for e in found] == expected
    assert len(found) > 3
    assert all(e.facts["surprise"] >= 2.3 for e in found)


@pytest.mark.parametrize("seed", range(5))
def test_a_nonfinite_stretch_is_one_event_with_the_layers_that_began_it(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = 200
    steps = np.arange(size)
    norms = np.ones((size, len(LAYERS)))
    counts = np.zeros((size, len(LAYERS)))
    loss = np.ones(size)
    for at in rng.integers(0, size, size=6):
        width = int(rng.integers(1, 15))
        norms[at : at + width, rng.integers(5)] = rng.choice([np.nan, np.inf])
        counts[at : at + 2 * width, rng.integers(5)] = 3
    loss[rng.integers(0, size, size=8)] = np.nan
    measured = {"grad_norm": rng.random(norms.shape) < 0.8, "nonfinite_count": counts >= 0}
    values = {"grad_norm": norms, "nonfinite_count": counts}
    watched = reactions(tmp_path)
    watched.on("nonfinite", "log")
    found = feed(watched, in_intervals(rng, size), steps, values, {"loss": loss}, measured)
    bad = (measured["grad_norm"] & ~np.isfinite(norms)) | (counts > 0)
    any_bad = bad.any(axis=1) | ~np.isfinite(loss)
    begins = [s for s in steps if any_bad[s] and (s == 0 or not any_bad[s - 1])]
    assert [e.step for e in found] == begins
    for event in found:
        of_loss = not math.isfinite(loss[event.step])
        assert event.facts["loss"] == of_loss
        assert event.facts["signal"] == ("loss" if of_loss else "grad_norm")
        # a gradient spreads from deep layers to shallow ones
        began = [] if of_loss else [LAYERS[i] for i in np.flatnonzero(bad[event.step])[::-1]]
        assert event.facts["layers"] == began


@pytest.mark.parametrize("end", ["flush", "close"])
def test_an_action_may_flush_or_close_the_monitor(tmp_path: Path, end: str) -> None:
    """It runs while a row is being opened, which has no values yet."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stabkit.Monitor(model, optimizer, tmp_path / "run", flush_every=10) as monitor:
        monitor.on("nonfinite", lambda _: getattr(monitor, end)())
        for step in range(60):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            if step == 3:
                model[0].weight.grad[0, 0] = math.inf  # type: ignore[union-attr, index]
                model[0].weight.grad[1:] = 0  # type: ignore[union-attr, index]
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            if step == 3:
                with torch.no_grad():
                    for p, old in zip(model.parameters(), before, strict=True):
                        p.copy_(old)
    steps = stabkit.open_run(tmp_path / "run").signals("grad_norm")["step"].unique().tolist()
    assert steps == list(range(60 if end == "flush" else len(steps)))
    assert len(steps) >= 10


def test_a_gradient_that_was_not_measured_is_not_a_nonfinite_one(tmp_path: Path) -> None:
    watched = reactions(tmp_path)
    watched.on("nonfinite", "log")
    holed = np.full((10, len(LAYERS)), np.nan)
    assert find(watched, np.arange(10), LAYERS, {"grad_norm": holed}, {}) == []
    seen = {"grad_norm": np.ones_like(holed, dtype=bool)}
    (event,) = find(watched, np.arange(10, 20), LAYERS, {"grad_norm": holed}, {}, seen)
    assert (event.step, event.facts["layers"]) == (10, LAYERS[::-1])


@pytest.mark.lengthy
@pytest.mark.parametrize("seed", range(3))
def test_a_dip_is_told_once_however_its_bounds_move(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dips = (Planted(25, 5, 0.15), Planted(45, int(rng.integers(6, 12)), 0.2, "v"))
    curve = simulate_curve(rng, evals=70, n=300, planted=dips, ar=0.3)
    watched = reactions(tmp_path)
    watched.on("dip", "log")
    told: list[OnlineEvent] = []
    for i, (step, correct) in enumerate(zip(curve.step, curve.correct, strict=True)):
        new = watched.evaluated(int(step), "knn_heldout", correct, 0.1)
        assert all(event.facts["found_at"] == step for event in new)
        assert all(event.step < step for event in new)
        told += new
        if i > 1:  # what comes twice changes nothing
            again = watched.evaluated(int(curve.step[i - 1]), "knn_heldout", correct, 0.1)
            assert again == []
    found = find_dips(curve.step, curve.accuracy, correct=curve.correct, chance=0.1)
    every = int(curve.step[1] - curve.step[0])
    assert len(found) == 2
    told += watched._watches["dip"].finish()  # type: ignore[attr-defined]
    onsets = [event.step for event in told if event.state == "confirmed"]
    assert onsets == pytest.approx(found["onset"].tolist(), abs=2 * every)
    assert watched.evaluated(10**6, "knn_bank", curve.correct[0], 0.1) == []


@pytest.mark.parametrize(("other", "told"), [("val_acc", False), (None, True)])
def test_a_training_accuracy_has_dips_only_where_none_is_held_out(
    tmp_path: Path, other: str | None, told: bool
) -> None:
    watched = reactions(tmp_path)
    watched.on("dip", "log")
    steady = np.arange(500) < 300
    for i in range(40):
        if other:
            watched.react(watched.evaluated(i, other, steady, 0.1))
        bits = np.arange(500) < 500 * (0.3 if 20 <= i < 25 else 0.6)
        watched.react(watched.evaluated(i, "train_acc", bits, 0.1))
    assert watched.counts == ({"dip": 1} if told else {})


def test_a_dip_is_found_when_samples_change_midway(tmp_path: Path) -> None:
    watched = reactions(tmp_path)
    watched.on("dip", "log")
    told = []
    for i in range(40):
        size = 1000 + 50 * (i > 10)
        bits = np.arange(size) < size * (0.3 if 20 <= i < 25 else 0.6)
        told += watched.evaluated(i, "mine", bits, 0.1)
    assert [(event.step, event.state) for event in told] == [(19, "suspected"), (19, "confirmed")]


def dipping_run(monitored: Reactions, last: int = 40) -> None:
    """Feed evaluations that fall at 20 to 24; 30 confirms the dip."""
    for i in range(last):
        bits = np.arange(500) < 500 * (0.3 if 20 <= i < 25 else 0.6)
        monitored.react(monitored.evaluated(i, "mine", bits, 0.1))


def test_actions_wait_for_a_dip_to_be_confirmed_unless_asked_for_suspected_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[tuple[str, OnlineEvent]] = []
    watched = reactions(tmp_path)
    watched.on("dip", lambda event: done.append(("early", event)), suspected=True)
    watched.on("dip", lambda event: done.append(("late", event)))
    watched.on("dip", "log", suspected=True)
    watched.on("dip", "mark")
    watched.on("dip", "stop")
    dipping_run(watched, last=29)
    assert [(who, e.state, e.facts["found_at"]) for who, e in done] == [("early", "suspected", 21)]
    assert (watched.counts, watched.should_stop) == ({}, False)
    assert caplog.records[0].message.startswith(
        "suspected dip of 30.0 points in mine from step 19 on, seen at 21"
    )
    dipping_run(watched)  # what came before comes twice
    assert [(who, e.facts["found_at"]) for who, e in done] == [("early", 21), ("late", 29)]
    assert (watched.counts, watched.should_stop) == ({"dip": 1}, True)
    told = [(e["kind"], e["step"], e.get("onset")) for e in events_of(tmp_path)]
    assert told == [
        ("suspected", 21, 19), ("confirmed", 29, 19), ("unstable", 19, None), ("stop", 19, None),
    ]  # fmt: skip


def test_the_end_of_a_run_confirms_a_dip_that_is_still_suspected(tmp_path: Path) -> None:
    watched = reactions(tmp_path, now=25)
    watched.on("dip", "mark")
    dipping_run(watched, last=25)
    assert watched.counts == {}
    watched.finish()
    assert watched.counts == {"dip": 1}
    kinds = [(e["kind"], e["step"]) for e in events_of(tmp_path)]
    assert kinds == [("suspected", 21), ("confirmed", 24), ("unstable", 19)]


def test_a_run_that_is_healthy_so_far_withdraws_what_it_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = reactions(tmp_path)
    for word in ("mark", "stop"):
        watched.on("dip", word)

    def find(steps: list[int], *args: Any, **options: Any) -> pd.DataFrame:
        """Find the dip until later evaluations explain it."""
        found = find_dips(steps, *args, **options)
        return found if len(steps) < 25 else found[:0]

    monkeypatch.setattr(online_dips, "find_dips", find)
    dipping_run(watched)
    assert [e["kind"] for e in events_of(tmp_path)] == ["suspected", "withdrawn"]
    assert (watched.counts, watched.should_stop) == ({}, False)


@pytest.mark.parametrize("seed", range(4))
def test_a_collapse_is_told_once_of_the_run_and_of_a_layer(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(0, 600, 3)
    spread = 1 + 0.1 * rng.normal(size=steps.size)
    for at in rng.integers(10, steps.size, size=4):
        spread[at : at + int(rng.integers(1, 12))] *= 0.1
    ranks = np.ones((steps.size, len(LAYERS)))
    ranks[150:, 3] = 0.1
    watched = reactions(tmp_path)
    watched.on("collapse", "log")
    parts = in_intervals(rng, steps.size)
    found = feed(watched, parts, steps, {"effective_rank": ranks}, {"feature_std": spread})
    of_run = [e.step for e in found if e.layer is None]
    assert of_run == find_collapse(steps, spread)["onset"].tolist()
    assert [(e.layer, e.step) for e in found if e.layer] == [("blocks.3", 450)]


def test_steps_made_again_are_not_looked_at_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps, values = np.arange(400), spiky(rng, 400)
    loss = spiky(rng, 400)[:, 0]
    once, again = reactions(tmp_path / "a"), reactions(tmp_path / "b")
    for watched in (once, again):
        watched.on("spike", "log")
        watched.on("nonfinite", "log")
    whole = feed(once, [slice(0, 400)], steps, {"grad_norm": values}, {"loss": loss})
    parts = [slice(0, 150), slice(90, 200), slice(0, 20), slice(199, 400)]
    found = feed(again, parts, steps, {"grad_norm": values}, {"loss": loss})
    assert sorted(found, key=str) == sorted(whole, key=str)
    assert whole


def write_run(folder: Path, steps: np.ndarray, values: np.ndarray, loss: np.ndarray) -> None:
    writer = Writer(folder, "abcd")
    table = values.astype(np.float32)
    signals = {"grad_norm": table, "grad_max": table, "param_norm": np.ones_like(table)}
    writer.add_layers(steps, LAYERS, signals, {name: np.isnan(table) for name in signals})
    writer.add_scalars(steps, "loss", loss)
    bad = (~np.isfinite(values)).sum(axis=1).astype(np.float64)
    writer.add_scalars(steps, "nonfinite_layers", bad)
    writer.flush()


@pytest.mark.lengthy
def test_a_resumed_run_finds_what_an_unbroken_one_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    size, at = 600, 330
    steps = np.arange(size)
    values = spiky(rng, size).astype(np.float32).astype(np.float64)
    values[at - 5 : at + 5, 2] = np.inf  # the resume falls into a stretch of them
    values[500:505, 1] = np.inf
    loss = spiky(rng, size)[:, 0]
    loss[~np.isfinite(loss)] = 1.0
    spread = {"feature_std": np.where(steps < 400, 1.0, 0.1)}
    whole = reactions(tmp_path / "whole")
    resumed = reactions(tmp_path / "resumed", now=at)
    write_run(tmp_path / "resumed", steps[:at], values[:at], loss[:at])
    writer = Writer(tmp_path / "resumed", "abcd")
    writer.add_scalars(steps[:at], "feature_std", spread["feature_std"][:at])
    curve = simulate_curve(rng, evals=60, planted=(Planted(28, 6, 0.15),))
    for i in range(32):
        share = float(curve.accuracy[i])
        step = int(curve.step[i])
        writer.add_eval(step, "knn_heldout", share, 0.1, 20, 0.07, curve.correct[i])
    writer.flush()
    for watched in (whole, resumed):
        for kind in ("spike", "nonfinite", "collapse", "dip"):
            watched.on(kind, "log")
    told = [
        [
            event
            for i in range(first, 60)
            for event in watched.evaluated(int(curve.step[i]), "knn_heldout", curve.correct[i], 0.1)
        ]
        for watched, first in ((whole, 0), (resumed, 32))
    ]
    assert [event.state for event in told[0]] == ["suspected", "confirmed"]
    # it was suspected before the resume, and is confirmed when it would have been
    assert told[1] == told[0][1:]
    scalars = {"loss": loss} | spread
    of_whole = feed(whole, [slice(0, 200), slice(200, size)], steps, {"grad_norm": values}, scalars)
    of_rest = feed(resumed, [slice(at, size)], steps, {"grad_norm": values}, scalars)
    assert of_rest == [event for event in of_whole if event.step >= at]
    assert {event.kind for event in of_rest} == {"spike", "nonfinite", "collapse"}


@pytest.mark.parametrize("lost_from", [90, 150])
def test_a_loss_that_was_lost_before_a_resume_is_not_told_again(
    tmp_path: Path, lost_from: int
) -> None:
    steps, at = np.arange(200), 100
    quiet = np.ones((200, len(LAYERS)))
    loss = np.where(steps < lost_from, 1.0, np.nan)
    write_run(tmp_path, steps[:at], quiet[:at], loss[:at])
    resumed = reactions(tmp_path, now=at)
    resumed.on("nonfinite", "log")
    found = feed(resumed, [slice(at, 200)], steps, {"grad_norm": quiet}, {"loss": loss})
    assert [event.step for event in found] == ([] if lost_from < at else [lost_from])


def test_nothing_runs_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = reactions(tmp_path)

    def never(*_: Any) -> None:
        raise AssertionError("a detector ran")

    monkeypatch.setattr(Reactions, "_watch", never)
    values = {"grad_norm": np.full((50, len(LAYERS)), np.nan)}
    assert find(watched, np.arange(50), LAYERS, values, {}) == []
    assert watched.evaluated(3, "knn_heldout", np.ones(5, dtype=bool), 0.1) == []
    watched.agree()
    watched.close()
    assert not watched.asked
    assert not (tmp_path / "events.jsonl").exists()


def test_what_is_asked_must_be_known(tmp_path: Path) -> None:
    watched = reactions(tmp_path)
    with pytest.raises(ValueError, match="unknown event kind 'dips'; there are nonfinite, spike"):
        watched.on("dips", "log")
    with pytest.raises(ValueError, match=r"webhook:URL or command: WORDS, got 'halt'"):
        watched.on("dip", "halt")
    sgd = torch.optim.SGD(small_model().parameters(), lr=0.1)
    without_moments = reactions(tmp_path, optimizer=sgd)
    with pytest.raises(ValueError, match="none of the optimizers has betas: SGD"):
        without_moments.on("stale_moments", "log")
    with pytest.raises(ValueError, match="collapse is confirmed as soon as it is found"):
        watched.on("collapse", "log", suspected=True)
    with pytest.raises(ValueError, match="mark is for confirmed events"):
        watched.on("dip", "mark", suspected=True)
    assert not watched.asked


def test_actions_run_once_each_in_order_and_one_that_raises_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[tuple[str, OnlineEvent]] = []

    def broken(event: OnlineEvent) -> None:
        done.append(("broken", event))
        raise RuntimeError("no disk")

    watched = reactions(tmp_path)
    watched.on("spike", lambda event: done.append(("first", event)))
    watched.on("spike", broken)
    watched.on("spike", lambda event: done.append(("last", event)))
    watched.on("dip", lambda event: done.append(("never", event)))
    events = [OnlineEvent("spike", 7, "norm", {"ratio": 5.0}), OnlineEvent("spike", 90, "norm")]
    watched.react(events)
    assert done == [(who, event) for event in events for who in ("first", "broken", "last")]
    facts = {"cause": "spike", "error": "RuntimeError: no disk"}
    assert events_of(tmp_path) == [
        {"kind": "action_failed", "step": step} | facts for step in (7, 90)
    ]
    assert [r.message for r in caplog.records] == [
        "the action on spike failed: RuntimeError: no disk"
    ]
    strict = reactions(tmp_path, strict=True)
    strict.on("spike", broken)
    with pytest.raises(RuntimeError, match="no disk"):
        strict.react(events)


def test_a_folder_that_is_gone_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[OnlineEvent] = []
    watched = reactions(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for action in ("mark", "stop", done.append):
        watched.on("spike", action)
    watched.react([OnlineEvent("spike", 7), OnlineEvent("spike", 90)])
    assert len(done) == 2
    assert watched.should_stop
    OUT[tmp_path / "gone"].wait()
    (record,) = caplog.records
    assert "gone cannot be written" in record.message
    assert not (tmp_path / "gone").exists()


def test_a_detector_that_fails_is_off_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = reactions(tmp_path)
    watched.on("spike", "log")
    watched.on("nonfinite", "log")
    bad = {"grad_norm": np.full((5, len(LAYERS)), np.inf)}

    def broken(self: object, rows: object) -> list[OnlineEvent]:
        raise ZeroDivisionError

    monkeypatch.setattr(SpikeWatch, "rows", broken)
    for first in (0, 5):
        found = find(watched, first + np.arange(5), LAYERS, bad, {})
        assert [e.kind for e in found] == ["nonfinite"] * (first == 0)
    told = sorted((event["kind"], event["cause"]) for event in events_of(tmp_path))
    assert told == [("confirmed", "nonfinite"), ("detector_failed", "spike")]
    assert len(caplog.records) == 1


def test_the_word_log_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = reactions(tmp_path)
    watched.on("spike", "log")
    watched.on("nonfinite", "log")
    watched.react(
        [
            OnlineEvent(
                "spike", 12, "norm", {"signal": "grad_norm", "layers": LAYERS, "ratio": 7.126}
            )
        ]
    )
    facts = {"layers": [], "signal": "loss", "loss": True}
    watched.react([OnlineEvent("nonfinite", 16, None, facts)])
    record, of_loss = caplog.records
    assert of_loss.message == "loss not finite at step 16"
    assert (record.name, record.levelno) == ("stabkit", logging.WARNING)
    assert record.message == (
        "spike of grad_norm at step 12 in norm: 7.13 times what was expected, also in blocks.0, "
        "blocks.1, blocks.2 and 2 more"
    )


def test_the_word_mark_is_an_event_in_the_log_that_any_reader_takes(tmp_path: Path) -> None:
    watched = reactions(tmp_path)
    watched.on("stale_moments", "mark")
    watched.react(
        [OnlineEvent("stale_moments", 12, "norm", {"layers": ["norm"], "surprise": math.inf})]
    )

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    OUT[tmp_path].wait()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert {k: v for k, v in event.items() if k != "time"} == {
        "kind": "unstable",
        "step": 12,
        "cause": "stale_moments",
        "layer": "norm",
        "layers": ["norm"],
        "surprise": None,
    }


def test_the_word_stop(tmp_path: Path) -> None:
    watched = reactions(tmp_path, now=130)
    watched.on("dip", "stop")
    watched.react([OnlineEvent("spike", 12)])
    assert not watched.should_stop
    watched.react([OnlineEvent("dip", 50)])
    assert watched.should_stop
    assert events_of(tmp_path) == [{"kind": "stop", "step": 50, "cause": "dip", "asked_at": 130}]


def test_the_word_checkpoint_saves_what_a_fresh_model_goes_on_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(8, 3)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(model, optimizer)
    watched = Reactions(RunDir(tmp_path), model, [optimizer], {}, lambda: 3, writing(tmp_path))
    watched.on("spike", "checkpoint")
    watched.react([OnlineEvent("spike", 1), OnlineEvent("spike", 2)])
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == "event-3.pt"
    assert [(e["step"], e["file"]) for e in events_of(tmp_path)] == [
        (1, "checkpoints/event-3.pt"),
        (2, "checkpoints/event-3.pt"),
    ]
    saved = torch.load(path, weights_only=True)
    fresh = small_model()
    other = torch.optim.AdamW(fresh.parameters())
    fresh.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizers"][0])
    assert saved["step"] == 3
    for _ in range(2):  # both moments, too, are those of the training
        step(model, optimizer)
        step(fresh, other)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert p.equal(q)


def on_two_ranks(folder: Path) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    folder.mkdir(parents=True, exist_ok=True)
    rank = torch.distributed.get_rank()
    done: list[tuple[int, str, int]] = []
    now = 0
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    out = writing(folder) if rank == 0 else None
    watched = Reactions(RunDir(folder), model, [optimizer], {}, lambda: now, out)
    watched.on("spike", lambda event: done.append((now, event.kind, event.step)))
    watched.on("spike", "stop")
    for word in ("log", "mark", "checkpoint"):
        watched.on("spike", word)
    stopped = None
    for now in range(4):
        if rank == 0 and now in (1, 2):  # only the first has values; it meets some twice
            watched.react([OnlineEvent("spike", 10 * now, "norm", FACTS)])
        watched.agree()
        if watched.should_stop and stopped is None:
            stopped = now
    if rank == 0:
        watched.react([OnlineEvent("spike", 99, None, FACTS)])
    watched.close()
    if out is not None:
        out.close()
    torch.distributed.destroy_process_group()
    return {"done": done, "stopped": stopped}


@pytest.mark.processes
def test_two_processes_do_the_same_at_the_same_step(tmp_path: Path) -> None:
    first, second = results(2, tmp_path / "ranks", on_two_ranks, tmp_path / "run")
    assert first == second == {"done": [(1, "spike", 10), (2, "spike", 20)], "stopped": 1}
    kinds = [event["kind"] for event in events_of(tmp_path / "run")]
    # of the last event, which no `agree` came for, only what one process can do alone
    assert kinds == ["stop", "unstable", "saved"] * 2 + ["unstable"]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"event-1.pt", "event-2.pt"}


def test_kinds_are_all_watched(tmp_path: Path) -> None:
    watched = reactions(tmp_path)
    for kind in KINDS:
        watched.on(kind, "log")
    steps = np.arange(50)
    values = {name: np.ones((50, len(LAYERS))) for name in ("grad_norm", "adam_rms")}
    assert find(watched, steps, LAYERS, values, {"loss": (steps, np.ones(50))}) == []
    assert events_of(tmp_path) == [], "no detector failed"


def test_a_monitor_stops_a_training_that_is_no_longer_finite(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    seen = []
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=5, full_every=1) as monitor:
        monitor.on("nonfinite", seen.append)
        monitor.on("nonfinite", "checkpoint")
        monitor.on("nonfinite", "stop")
        for step in range(40):
            loss = model(torch.ones(2, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if step == 12:
                model[2].bias.grad.fill_(math.inf)
            optimizer.step()
            monitor.log(loss=loss)
            if monitor.should_stop:
                break
    assert [(event.step, event.layer) for event in seen] == [(12, "2")]
    assert 12 < step <= 12 + 2 * 5 + 1, "an interval late, two at most"
    assert len(list((tmp_path / "checkpoints").glob("event-*.pt"))) == 1
