"""Whatever a Monitor is given and whatever fails in it, the training is what it would have been."""

import copy
import gc
import logging
import math
import random
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import Tensor, nn

import stabkit
from stabkit.monitor.blocks import Blocks
from stabkit.monitor.measure.scalars import Scalars
from stabkit.monitor.probe.probe import Probe, ProbePass
from stabkit.monitor.signals.signal import LEVELS, DerivedSignal, LayerSignal, ProbeSignal, Signal
from stabkit.rundir import RunDir
from tests.monitor.toy import Toy, assert_whole, kinds, written

FAILS_AT = 5  # steps; the toy's intervals have 2


class Broken(Exception):
    pass


class OfBlocks(LayerSignal):
    name = "broken"
    reads = "gradients"
    asked = 0

    def of_blocks(self, blocks: Blocks) -> Tensor:
        self.asked += 1
        return self.at(blocks) if self.asked > FAILS_AT else blocks.values.sum(1)

    def at(self, blocks: Blocks) -> Tensor:
        raise Broken("in of_blocks")


class WrongShape(OfBlocks):
    def at(self, blocks: Blocks) -> Tensor:
        return blocks.values.sum()


class NotATensor(OfBlocks):
    def at(self, blocks: Blocks) -> Any:
        return None


class OfLayer(LayerSignal):
    name = "broken"
    reads = "updates"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return blocks.values.sum(1)

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        raise Broken("in of_layer")


class OfLayerShape(OfLayer):
    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return total_L.sum()  # which NumPy would spread over all layers


class OfLayerInPlace(OfLayer):
    """No failure: what it was given is its own."""

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        count_L.zero_()
        return total_L.zero_()


class Derive(DerivedSignal):
    name = "broken"
    signals_of = ("grad_norm", "param_norm")

    def derive(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        raise Broken("in derive")


class DeriveShape(Derive):
    def derive(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values["grad_norm"][:1, :1]


class DeriveInPlace(Derive):
    def derive(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        values["grad_norm"][:] = 0
        return values["grad_norm"]


class DeriveUnasked(Derive):
    def derive(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values["no_such_signal"]


class Measure(ProbeSignal):
    name = "broken"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor] | Tensor:
        raise Broken("in measure")


class MeasureShape(Measure):
    def measure(self, seen: ProbePass) -> Mapping[str, Tensor] | Tensor:
        return {"0": torch.ones(3)}


class MeasureNothing(Measure):
    def measure(self, seen: ProbePass) -> Any:
        return 1.0


BROKEN = {  # and whether it had values before
    OfBlocks: 1, WrongShape: 1, NotATensor: 1, OfLayer: 0, OfLayerShape: 0, Derive: 0,
    DeriveShape: 0, DeriveInPlace: 0, DeriveUnasked: 0, Measure: 0, MeasureShape: 0,
    MeasureNothing: 0,
}  # fmt: skip


def table(folder: Path) -> pd.DataFrame:
    return stabkit.open_run(folder).signals().drop(columns="broken", errors="ignore")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder, toy = tmp_path_factory.mktemp("clean"), Toy()
    with toy.monitor(folder, probe_every=2) as monitor:
        toy.steps(11, monitor)
    return table(folder)


@pytest.mark.lengthy
@pytest.mark.parametrize("signal", BROKEN)
def test_a_signal_that_fails_is_null_from_then_on_and_nothing_else_is(
    tmp_path: Path,
    signal: type[Signal],
    clean: pd.DataFrame,
    caplog: pytest.LogCaptureFixture,
) -> None:
    toy = Toy()
    probe = Probe(view1=torch.ones(2, 4))
    with toy.monitor(tmp_path, signals=[signal, "basic"], probe=probe, probe_every=2) as monitor:
        toy.steps(11, monitor)
    toy.assert_undisturbed()
    assert_whole(tmp_path, toy)
    pd.testing.assert_frame_equal(table(tmp_path), clean)
    (event,) = (e for e in RunDir(tmp_path).read_entries() if e["kind"] != "noticed")
    assert (event["kind"], event["name"]) == ("signal_failed", "broken")
    assert 0 <= event["step"] < 11
    messages = [r.getMessage() for r in caplog.records if r.name == "stabkit"]
    (said,) = (message for message in messages if "a probe was given" not in message)
    assert "broken failed" in said
    found = stabkit.open_run(tmp_path).signals()
    if BROKEN[signal]:
        assert event["step"] == FAILS_AT
        assert (found["broken"].notna() == (found["step"] < FAILS_AT)).all()
    else:
        assert "broken" not in found or found["broken"].isna().all()


def test_a_signal_may_do_what_it_likes_with_its_own_totals(
    tmp_path: Path, clean: pd.DataFrame
) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, signals=[OfLayerInPlace, "basic"]) as monitor:
        toy.steps(11, monitor)
    pd.testing.assert_frame_equal(table(tmp_path), clean)
    assert (stabkit.open_run(tmp_path).signals()["broken"] == 0).all()
    assert kinds(tmp_path) == []


@pytest.mark.parametrize("reads", ["gradients", "parameters", "updates", "adam"])
def test_a_signal_that_changes_what_others_read_is_found_out(
    tmp_path: Path, reads: Any, clean: pd.DataFrame
) -> None:
    class Changes(LayerSignal):
        name = "broken"
        asked = 0

        def of_blocks(self, blocks: Blocks) -> Tensor:
            self.asked += 1
            return blocks.values.zero_().sum(1) if self.asked > FAILS_AT else blocks.values.sum(1)

    Changes.reads = reads
    toy = Toy()
    with toy.monitor(tmp_path, signals=[Changes, "basic"]) as monitor:
        toy.steps(11, monitor)
    toy.assert_undisturbed()
    (event,) = RunDir(tmp_path).read_entries()
    assert (event["kind"], event["step"]) == ("signal_failed", FAILS_AT)
    assert "changed blocks.values" in event["reason"]
    found = table(tmp_path)
    then = found["step"] == FAILS_AT
    assert found[then].drop(columns=["step", "layer", "depth"]).isna().all(axis=None)
    pd.testing.assert_frame_equal(found[~then], clean[~then])


def test_a_model_that_fails_in_evaluation_mode_ends_the_probe_alone(
    tmp_path: Path, clean: pd.DataFrame
) -> None:
    class TrainsOnly(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise Broken("in eval")
            return super().forward(x)

    toy = Toy()
    toy.model[0].__class__ = TrainsOnly  # type: ignore[assignment]
    probe = Probe(view1=torch.ones(4, 4))
    signals = ["basic", "probe_feature_std", "probe_rank"]
    with toy.monitor(tmp_path, signals=signals, probe=probe, probe_every=3) as monitor:
        toy.steps(11, monitor)
    assert toy.model.training
    toy.assert_undisturbed()
    pd.testing.assert_frame_equal(table(tmp_path)[list(clean)], clean)
    events = RunDir(tmp_path).read_entries()
    assert sorted(event["name"] for event in events) == ["probe_feature_std", "probe_rank"]
    assert [(event["kind"], event["step"]) for event in events] == [("signal_failed", 0)] * 2


def test_a_look_that_cannot_be_begun_ends_the_probe_alone(
    tmp_path: Path, clean: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: nn.Module) -> Iterator[nn.Module]:
        raise Broken("at its beginning")

    monkeypatch.setattr("stabkit.monitor.measure.probing.looking", fails)
    toy = Toy()
    probe = Probe(view1=torch.ones(4, 4))
    with toy.monitor(
        tmp_path, signals=["basic", "features"], probe=probe, probe_every=3
    ) as monitor:
        toy.steps(11, monitor)
    toy.assert_undisturbed()
    pd.testing.assert_frame_equal(table(tmp_path)[list(clean)], clean)
    assert set(kinds(tmp_path)) == {"signal_failed"}


def test_gradient_noise_that_fails_ends_alone(
    tmp_path: Path, clean: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, signals=["basic", "noise"], samples_per_step=16) as monitor:

        def fails(*_: object) -> None:
            raise Broken("in step")

        monkeypatch.setattr(monitor._recording.rows.noise.noise, "step", fails)
        monitor.micro_batch()
        toy.steps(11, monitor)
        monitor.micro_batch()
    toy.assert_undisturbed()
    pd.testing.assert_frame_equal(table(tmp_path), clean)
    events = RunDir(tmp_path).read_entries()
    assert {event["name"] for event in events} == {"noise_scale", "noise_trace", "noise_signal"}
    assert [event["step"] for event in events] == [0] * 3


@pytest.mark.parametrize(
    "where", ["measure.gradients", "measure.before", "measure.after", "measure.take",
              "scalars.of_optimizers", "scalars.take", "probing.take", "flusher.reader.read",
              "_agree"]
)  # fmt: skip
def test_an_error_anywhere_in_a_step_shifts_no_other_step(
    tmp_path: Path, clean: pd.DataFrame, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no signal made: of one step, or of an interval, the rows may go."""
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        *path, name = where.split(".")
        owner: Any = monitor._recording.rows
        for part in path:
            owner = getattr(owner, part)
        works, calls = getattr(owner, name), []

        def fails_once(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise Broken(where)
            return works(*args)

        monkeypatch.setattr(owner, name, fails_once)
        toy.steps(11, monitor)
    toy.assert_undisturbed()
    assert monitor.step == 11
    (event,) = RunDir(tmp_path).read_entries()
    assert event["kind"] == "monitor_failed"
    assert where in event["reason"]
    found = table(tmp_path).reset_index(drop=True)
    assert found["step"].nunique() >= 9
    right = clean[clean["step"].isin(found["step"])].reset_index(drop=True)
    null = found[list(clean)[3:]].isna()
    assert null.all(axis=1).equals(null.any(axis=1))  # of a row all or nothing
    assert null.any(axis=1).sum() <= 2
    pd.testing.assert_frame_equal(found[~null.any(axis=1)], right[~null.any(axis=1)])


def test_the_users_own_logging_may_fail(tmp_path: Path, clean: pd.DataFrame) -> None:
    class Fails(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise Broken("in a handler")

    handler = Fails()
    logging.getLogger("stabkit").addHandler(handler)
    toy = Toy()
    try:
        with toy.monitor(tmp_path, signals=[OfBlocks, Derive, "basic"]) as monitor:
            toy.steps(11, monitor)
    finally:
        logging.getLogger("stabkit").removeHandler(handler)
    toy.assert_undisturbed()
    pd.testing.assert_frame_equal(table(tmp_path), clean)


def test_a_step_that_raises_is_a_step_and_is_not_mixed_up_with_the_next(tmp_path: Path) -> None:
    class Fails(torch.optim.SGD):
        now = False

        def step(self, closure: Any = None) -> Any:
            if self.now:
                raise Broken("out of memory, say")
            return super().step(closure)

    p = nn.Parameter(torch.zeros(3))
    model = nn.ParameterList([p])
    optimizer = Fails(model.parameters(), lr=1.0)
    with stabkit.Monitor(model, optimizer, tmp_path, full_every=1) as monitor:
        for step in range(4):
            p.grad = torch.full_like(p, step + 1.0)
            optimizer.now = step == 1
            try:
                optimizer.step()
            except Broken:
                assert step == 1
            monitor.log(loss=float(step))
    run = stabkit.open_run(tmp_path)
    np.testing.assert_allclose(
        run.signals()["grad_norm"], math.sqrt(3) * np.arange(1, 5), rtol=1e-6
    )
    np.testing.assert_allclose(
        run.signals()["update_norm"], math.sqrt(3) * np.array([1, 0, 3, 4]), rtol=1e-6
    )


# --- log


def test_what_is_no_number_is_said_once_and_the_rest_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad: dict[str, Any] = {
        "vector": torch.ones(2), "text": "0.5", "nothing": None, "items": [1.0],
        "complex": torch.tensor(1j), "meta": torch.empty((), device="meta"),
        "array": np.ones(2),
    }  # fmt: skip
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        for step in range(7):
            toy.steps(1, monitor)
            monitor.log(**bad, good=step)
    assert_whole(tmp_path, toy)
    run = stabkit.open_run(tmp_path)
    assert run.scalar("good").tolist() == list(range(7))
    assert set(bad).isdisjoint(run.scalars()["name"])
    events = RunDir(tmp_path).read_entries()
    assert [event["name"] for event in events] == [f"log {name}" for name in bad]
    assert {event["kind"] for event in events} == {"monitor_failed"}
    assert sum(r.name == "stabkit" for r in caplog.records) == len(bad)


def test_a_name_that_no_file_can_hold_is_refused_when_it_comes() -> None:
    # not with a Monitor: what it says of such a name no other process can be sent
    with pytest.raises(UnicodeEncodeError):
        Scalars().log(0, "bad \ud800", 1.0)


def test_every_kind_of_number_is_a_number(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {
        "nan": math.nan, "inf": -math.inf, "int": 2**53, "huge": 10**400, "minus": -(10**400),
        "bool": True, "numpy": np.float32(0.5), "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "one": torch.ones(1, 1), "flag": torch.tensor(True), "infinite": torch.tensor(math.inf),
    }  # fmt: skip
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        toy.steps(1, monitor)
        monitor.log(**numbers)
    found = {name: stabkit.open_run(tmp_path).scalar(name).tolist() for name in numbers}
    assert math.isnan(found.pop("nan")[0])
    expected = [-math.inf, 2.0**53, math.inf, -math.inf, 1.0, 0.5, 0.5, 1.0, 1.0, math.inf]
    assert found == dict(zip(found, [[value] for value in expected], strict=True))
    assert kinds(tmp_path) == []


def test_tensors_and_floats_of_one_name(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, flush_every=4) as monitor:
        for step in range(6):
            toy.steps(1, monitor)
            monitor.log(mixed=torch.tensor(float(step)) if step % 2 else float(step))
    assert stabkit.open_run(tmp_path).scalar("mixed").tolist() == [0, 1, 2, 3, 4, 5]


class Kept:
    """What a graph keeps for its backward pass."""

    all: ClassVar["list[weakref.ref[Kept]]"] = []

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.all.append(weakref.ref(self))


@pytest.mark.lengthy
def test_a_logged_tensor_keeps_no_graph_alive_and_may_be_overwritten(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, flush_every=50) as monitor:
        toy.steps(1, monitor)
        images = torch.ones(4, 4)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            loss = (2 * toy.model[0].weight).square().sum()
        value = loss.item()
        assert [kept for kept in Kept.all if kept()]
        monitor.log(loss=loss, image=images[0, 0])
        images.zero_()
        del loss
        gc.collect()
        assert not [kept for kept in Kept.all if kept()]
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").tolist() == [value]
    assert run.scalar("image").tolist() == [1.0]


def test_log_before_the_first_step_is_of_it_also_after_a_resume(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        monitor.log(early=1.0, loss=7.0)
        toy.steps(3, monitor)
    with toy.monitor(tmp_path, first_step=3) as monitor:
        monitor.log(early=2.0, loss=7.0)
        toy.steps(3, monitor)
    monitor.log(late=1.0)  # closed: nothing, and no error
    run = stabkit.open_run(tmp_path)
    assert run.scalar("early").to_dict() == {0: 1.0, 3: 2.0}
    assert_whole(tmp_path, toy)
    assert "late" not in set(run.scalars()["name"])


# --- the measurement does not change the experiment


class Noisy(nn.Module):
    """A small ViT with all that a measurement could disturb.

    Dropout, the statistics of a batch norm, and draws from every global generator in its forward
    pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
            num_classes=4, drop_rate=0.1, attn_drop_rate=0.1, proj_drop_rate=0.1,
            drop_path_rate=0.1,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        strength = 0.01 * random.random() * np.random.rand()
        out: Tensor = self.vit(self.bn(x) + strength * torch.randn(x.shape))
        return out


def noisy_training(
    folder: Path | None, signals: list[Any], react: bool = False, steps: int = 7
) -> list[Any]:
    """Everything that a training leaves: losses, weights, buffers, moments, generators."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Noisy()
    target = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(1)
    monitor = None
    if folder is not None:
        g = torch.Generator().manual_seed(2)
        views = [torch.randn(4, 3, 16, 16, generator=g) for _ in range(2)]
        probe = Probe(views[0], views[1], loss=lambda m: m(views[0]).square().mean(), target=target)
        monitor = stabkit.Monitor(
            model, optimizer, folder, signals=signals, probe=probe, probe_every=2, flush_every=2,
            samples_per_step=8, full_every=1,
        )  # fmt: skip
        for kind in ("nonfinite", "spike", "stale_moments", "collapse", "dip") if react else ():
            for action in ("log", "mark", "checkpoint", "stop", lambda event: None):
                monitor.on(kind, action)
    losses = []
    for step in range(steps):
        images = torch.randn(8, 3, 16, 16, generator=data)
        optimizer.zero_grad()
        loss = torch.zeros(())
        for part in images.chunk(2):
            loss = model(part).square().mean() / 2
            loss.backward()
            if monitor:
                monitor.micro_batch()
        if monitor:
            monitor.before_clipping()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(target.parameters(), model.parameters(), strict=True):
                p.lerp_(q, 0.1)
        if monitor:
            monitor.log(loss=loss, odd=math.nan if step == 3 else 0.0)
            monitor.log_eval(step, "knn", torch.arange(9) % 2, torch.zeros(9), chance=1 / 2)
        losses.append(loss.item())
    if monitor:
        monitor.close()
    assert model.training
    assert all(module.training for module in model.modules())
    states = [model.state_dict(), target.state_dict(), optimizer.state_dict()["state"]]
    draws = [torch.rand(()).item(), random.random(), np.random.rand()]
    return [losses, draws, [p.requires_grad for p in model.parameters()], *map(flat, states)]


def flat(state: Any) -> list[bytes]:
    if isinstance(state, Mapping):
        return [leaf for value in state.values() for leaf in flat(value)]
    return [state.numpy().tobytes()]


@pytest.fixture(scope="module")
def bare() -> list[Any]:
    return noisy_training(None, [])


@pytest.mark.lengthy
@pytest.mark.parametrize("level", LEVELS)
def test_a_training_is_the_same_bit_for_bit_with_every_level(
    tmp_path: Path, level: str, bare: list[Any]
) -> None:
    assert noisy_training(tmp_path, [level]) == bare
    # that it was measured at all
    probed = level not in ("basic", "noise")  # the others are told that no signal uses the probe
    told = [] if probed else ["noticed"]
    assert [kind for kind in kinds(tmp_path) if kind != "nonfinite"] == told
    run = stabkit.open_run(tmp_path)
    columns = set(run.signals().dropna(axis=1, how="all")) | set(run.scalars()["name"])
    columns -= {"step", "layer", "depth", "loss", "odd", "lr", "beta2", "images_per_s"}
    asked = {name for name, s in stabkit.monitor.signals.signal.SIGNALS.items() if s.level == level}
    assert len(columns & asked) >= len(asked) / 2


@pytest.mark.lengthy
def test_a_training_is_the_same_bit_for_bit_with_all_levels_and_reactions(
    tmp_path: Path, bare: list[Any]
) -> None:
    assert noisy_training(tmp_path, list(LEVELS), react=True) == bare


# --- no wait for the device


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On a CPU there is no stream to stall, so reads themselves are counted."""
    seen: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__",
                 "nonzero", "__array__", "__contains__"):  # fmt: skip
        original = getattr(Tensor, name)

        def counted(
            self: Tensor, *args: Any, _of: Any = original, _name: str = name, **kwargs: Any
        ) -> Any:
            seen.append(_name)
            return _of(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    return seen


def test_no_step_reads_the_device_with_a_scaler_and_several_optimizers(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same training without a Monitor, since a GradScaler reads by itself."""
    monkeypatch.setattr(Blocks, "squares", Blocks._squares_by_tensor)  # as on a device

    def training(folder: Path | None) -> list[list[str]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizers = [
            torch.optim.AdamW(model[0].parameters(), lr=torch.tensor(0.01), foreach=False),
            torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9),
        ]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        monitor = None
        if folder is not None:
            monitor = stabkit.Monitor(
                model,
                optimizers,
                folder,
                scaler=scaler,
                flush_every=100,
                samples_per_step=4,
                full_every=1,
            )
        found = []
        for step in range(12):
            del reads[:]
            loss = model(torch.full((4, 4), math.inf if step == 5 else 1.0)).sum()
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizers[0])
            if monitor and step % 2:
                monitor.before_clipping()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            if monitor:
                monitor.log(loss=loss, lr_now=optimizers[0].param_groups[0]["lr"], n=step)
            found.append(list(reads))
        if monitor:
            monitor.close()
        return found

    bare = training(None)
    assert training(tmp_path) == bare
    assert any(bare)  # the scaler's own
    run = stabkit.open_run(tmp_path)
    assert run.scalar("grad_scale").index.tolist() == list(range(12))
    finite = np.isfinite(run.signals()["grad_norm"])
    assert (finite == (run.signals()["step"] != 5)).all()


def test_an_interval_is_read_one_later(tmp_path: Path, reads: list[str]) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path, flush_every=5)
    found = []
    for _ in range(16):
        del reads[:]
        toy.steps(1, monitor)
        reads.remove("item")  # the toy's own
        found.append("numpy" in reads)
        written(monitor)
    assert np.flatnonzero(found).tolist() == [10, 15]
    monitor.close()
