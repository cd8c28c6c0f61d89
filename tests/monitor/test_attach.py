"""The Monitor in every kind of loop on one process, each against an oracle and a twin without."""

import gc
import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import stabkit
from stabkit.rundir import ForeignFolderError
from tests.gpu import DEVICE, ON_CUDA
from tests.monitor.twins import ORDER, Net, Watch, batch, loss_of, net, twins

Outcome = tuple[list[float], nn.Module]


def numbered(name: str) -> str:
    return ".".join(name.split(".")[:2])


def adamw(parameters: Any, **options: Any) -> AdamW:
    return AdamW(parameters, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, **options)


def step_of(optimizer: Optimizer, expected: Any, act: Callable[[], Any] | None = None) -> None:
    """Add a row of one optimizer's step."""
    expected.row()
    expected.gradients(optimizer)
    expected.before(optimizer)
    (act or optimizer.step)()
    expected.after(optimizer)


# --- one optimizer


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_plain_loops_and_accumulation(to_none: bool, micro_batches: int, tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        optimizer = adamw(model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        monitor, expected = watch.attach(model, optimizer, order=ORDER)
        for step in range(7):
            optimizer.zero_grad(set_to_none=to_none)
            for micro in range(micro_batches):
                loss = loss_of(model, 10 * step + micro) / micro_batches
                loss.backward()
            step_of(optimizer, expected)
            schedule.step()
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)
    lr = stabkit.open_run(tmp_path).scalar("lr")
    assert lr.to_dict() == {step: 0.01 * 0.5 ** (step // 2) for step in range(7)}


@pytest.mark.parametrize("before", [True, False])
def test_clipping_by_norm_and_by_value(before: bool, tmp_path: Path) -> None:
    """Record norms before clipping with `before_clipping` and after it without.

    The moments are always those of what the optimizer was given.
    """
    norms = []

    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        optimizer = adamw(model.parameters())
        monitor, expected = watch.attach(model, optimizer, order=ORDER)
        for step in range(7):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            expected.row()
            if before:
                monitor.before_clipping()
                expected.gradients(optimizer)
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
            nn.utils.clip_grad_value_(model.parameters(), 0.01)
            if not before:
                expected.gradients(optimizer)
            expected.before(optimizer)
            optimizer.step()
            expected.after(optimizer)
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)
    total = stabkit.open_run(tmp_path).scalar("grad_norm_total")
    assert min(norms) > 0.05  # it did clip
    if before:
        assert total.tolist() == pytest.approx(norms[:7], rel=1e-5)
    else:
        assert total.max() <= 0.05 * (1 + 1e-5)


def test_a_step_that_the_loop_leaves_out_has_gradients_and_no_update(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model = net()
        optimizer = adamw(model.parameters())
        monitor, expected = watch.attach(model, optimizer, order=ORDER)
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            expected.row()
            monitor.before_clipping()
            expected.gradients(optimizer)
            expected.before(optimizer)
            if step not in (2, 3):
                optimizer.step()
            expected.after(optimizer, late=step in (2, 3))
        return [], model

    expected = twins(tmp_path, loop)
    assert [row["head"]["update_norm"] == 0 for row in expected.rows] == [0, 0, 1, 1, 0, 0]
    assert [row["head"]["adam_rms"] is None for row in expected.rows] == [0, 0, 1, 1, 0, 0]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": adamw,
    "lbfgs": lambda p: torch.optim.LBFGS(list(p), max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("how", ["position", "keyword"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_a_closure_are_those_of_its_first_call(
    name: str, how: str, tmp_path: Path
) -> None:
    calls = []

    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        # LBFGS takes no parameters without gradient here: it would count them as zeros
        optimizer = OPTIMIZERS[name](model.parameters())
        monitor, expected = watch.attach(model, optimizer, order=ORDER)
        for step in range(4):
            first = True

            def closure(step: int = step) -> Tensor:
                nonlocal first
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                calls.append(step)
                if first:
                    first = False
                    expected.gradients(optimizer)
                    expected.before(optimizer)
                return loss

            expected.row()
            args, kwargs = ((closure,), {}) if how == "position" else ((), {"closure": closure})
            loss = optimizer.step(*args, **kwargs)
            expected.after(optimizer)
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)
    assert (len(calls) > 2 * 4) == (name == "lbfgs")


class Shrinking(AdamW):
    """An optimizer that calls the step of its base, which has hooks of its own, then goes on.

    It fails once, after it has begun.
    """

    calls = 0

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.calls += 1
        if self.calls == 3:
            raise MemoryError
        with torch.no_grad():
            for group in self.param_groups:
                torch._foreach_mul_([p for p in group["params"] if p.requires_grad], 0.9)
        return loss


@pytest.mark.parametrize("with_closure", [True, False])
def test_a_step_within_a_step_is_one_and_one_that_raises_is_a_row(
    with_closure: bool, tmp_path: Path
) -> None:
    adamw([torch.zeros(1, requires_grad=True)])  # the first of a class gives its step hooks

    def loop(watch: Watch) -> Outcome:
        model = net()
        optimizer = Shrinking(model.parameters(), lr=0.01)
        _, expected = watch.attach(model, optimizer, order=ORDER)

        def closure(step: int) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            expected.gradients(optimizer)
            expected.before(optimizer)
            return loss

        for step in range(5):
            expected.row()
            if not with_closure:
                closure(step)
            try:
                optimizer.step(partial(closure, step) if with_closure else None)
            except MemoryError:
                expected.after(optimizer, late=True)
                expected.update_moments(optimizer)  # of the base's, which had been done
                continue
            expected.after(optimizer)
        return [], model

    expected = twins(tmp_path, loop)
    assert [row["head"]["adam_rms"] is None for row in expected.rows] == [0, 0, 1, 0, 0]


def test_a_step_that_raised_leaves_no_values_once_another_optimizer_stepped(
    tmp_path: Path,
) -> None:
    class Fails(SGD):
        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise MemoryError
            return super().step(closure)

        fails = False

    def loop(watch: Watch) -> Outcome:
        model = net()
        matrices, rest = split(model)
        first, second = Fails(matrices, lr=0.1), SGD(rest, lr=0.1)
        _, expected = watch.attach(model, [first, second], order=ORDER)
        for step in range(5):
            model.zero_grad()
            loss_of(model, step).backward()
            expected.row()
            for optimizer in (first, second):
                expected.gradients(optimizer)
                expected.before(optimizer)
                first.fails = step == 2
                try:
                    optimizer.step()
                except MemoryError:
                    continue
                expected.after(optimizer)
        return [], model

    twins(tmp_path, loop)


# --- GradScaler


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("how", ["fused", "foreach", "single"])
@pytest.mark.parametrize("given", [True, False])
def test_gradients_under_a_scaler_are_unscaled(
    how: str, given: bool, clips: bool, tmp_path: Path
) -> None:
    """Let the scaler skip the first step and a later one, because of an overflow.

    Their rows hold the gradients as they are, and no update. If the scaler does not call the
    optimizer at all, there is no row unless the Monitor was given the scaler.
    """
    scales = []

    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        optimizer = adamw(model.parameters(), **({how: True} if how != "single" else {}))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        options = {"scaler": scaler} if given else {}
        monitor, expected = watch.attach(model, optimizer, order=ORDER, **options)
        expected.begins_when_skipped = how == "fused"
        for step in range(7):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model, step)
            scale = float(scaler.get_scale())
            scaler.scale(loss).backward()
            skipped = step in (0, 4)
            if skipped:
                model.head.weight.grad[1, 1] = math.inf
            seen = given or how == "fused" or not skipped
            if seen:
                expected.row()
                if given or not clips:  # before clipping: the Monitor sees `unscale_`
                    expected.gradients(optimizer, scale)
            if clips:
                scaler.unscale_(optimizer)
                scale = 1.0
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if seen and not given:
                    expected.gradients(optimizer)
            if seen:
                expected.before(optimizer, scale)
            scaler.step(optimizer)
            if seen:
                expected.after(optimizer, skipped)
                scales.append(float(scaler.get_scale()))
            scaler.update()
            monitor.log(loss=loss)
            if seen:
                expected.log(loss)
            losses.append(loss.item())
        return losses, model

    if given or how == "fused":
        expected = twins(tmp_path, loop)
        assert [row["stem"]["update_norm"] == 0 for row in expected.rows] == [1, 0, 0, 0, 1, 0, 0]
        events = stabkit.open_run(tmp_path).log_entries()
        # a scaler that is known finds its scale so: no event
        assert [event["step"] for event in events] == ([] if given else [0, 4])
    else:
        with_it = Watch(tmp_path)
        loop(with_it)
        with_it.monitor.close()
        with_it.expected.logged = {}  # logged values of skipped steps went to the steps before
        with_it.expected.check(tmp_path)
    scalars = stabkit.open_run(tmp_path).scalars()
    recorded = scalars[scalars["name"] == "grad_scale"]["value"].tolist()
    assert recorded == (scales[: len(recorded)] if given else [])
    assert set(scales) == {512.0, 1024.0}  # it shrank and grew


def test_before_clipping_under_a_scaler_may_come_before_or_after_unscaling(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model = net()
        optimizer = adamw(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        monitor, expected = watch.attach(model, optimizer, order=ORDER, scaler=scaler)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            expected.row()
            if step % 2:
                expected.gradients(optimizer, scaler.get_scale())
                monitor.before_clipping()
            scaler.unscale_(optimizer)
            if not step % 2:
                expected.gradients(optimizer)
                monitor.before_clipping()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            expected.before(optimizer)
            scaler.step(optimizer)
            expected.after(optimizer)
            scaler.update()
        return [], model

    twins(tmp_path, loop)


@pytest.mark.parametrize("enabled", [True, False])
def test_an_optimizer_beside_the_scaler_is_not_divided(enabled: bool, tmp_path: Path) -> None:
    """One optimizer is stepped by the scaler, the other, in full precision, by itself."""

    def loop(watch: Watch) -> Outcome:
        model = net()
        head = list(model.head.parameters())
        rest = [p for name, p in model.named_parameters() if not name.startswith("head")]
        scaled, own = adamw(rest), adamw(head)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        _, expected = watch.attach(model, [scaled, own], order=ORDER, scaler=scaler)
        for step in range(4):
            model.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            for p in head:
                p.grad /= scaler.get_scale()
            expected.row()
            expected.gradients(scaled, scaler.get_scale())
            expected.before(scaled, scaler.get_scale())
            expected.gradients(own)
            expected.before(own)
            scaler.step(scaled)
            own.step()
            expected.after(scaled)
            expected.after(own)
            scaler.update()
        return [], model

    twins(tmp_path, loop)


@pytest.mark.lengthy
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_monitors_of_one_scaler_close_in_either_order(
    order: tuple[int, int], tmp_path: Path
) -> None:
    model = net()
    optimizer = adamw(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitors = [
        stabkit.Monitor(model, optimizer, tmp_path / str(i), scaler=scaler, full_every=1)
        for i in range(2)
    ]

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 0)).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    monitors[order[0]].close()
    step()
    monitors[order[1]].close()
    step()
    assert "step" not in scaler.__dict__
    rows = [stabkit.open_run(tmp_path / str(i)).signals()["step"].nunique() for i in order]
    assert rows == [1, 2]
    left = [weakref.ref(monitor) for monitor in monitors]
    monitors.clear()
    gc.collect()
    assert [ref() for ref in left] == [None, None]


def test_a_step_of_the_scalers_own_that_somebody_put_there_comes_back(tmp_path: Path) -> None:
    model = net()
    optimizer = adamw(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    theirs = partial(scaler.step)
    scaler.step = theirs  # type: ignore[method-assign,assignment]
    with stabkit.Monitor(model, optimizer, tmp_path, scaler=scaler, full_every=1):
        assert scaler.__dict__["step"] is not theirs
    assert scaler.__dict__["step"] is theirs


# --- dtypes, layouts, presence


class Mixed(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        widths = zip(dtypes, [3, 20, 20], [20, 20, 2], strict=True)
        self.parts = nn.ModuleList([nn.Linear(i, o, dtype=dtype) for dtype, i, o in widths])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x.to(part.weight.dtype)).tanh()
        return x.double()


B, S, D = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("dtypes", [(B, B, B), (D, D, D), (B, S, S), (S, D, B)])
def test_dtypes(dtypes: tuple[torch.dtype, ...], tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        torch.manual_seed(0)
        model = Mixed(*dtypes)
        optimizer = adamw(model.parameters())
        _, expected = watch.attach(model, optimizer, numbered)
        # torch keeps moments in the parameter's own precision
        expected.own_moments = False
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            step_of(optimizer, expected)
        return [], model

    twins(tmp_path, loop)


def test_layers_frozen_and_thawed_midway(tmp_path: Path) -> None:
    """Change what is trained while the run goes on.

    `frozen` becomes trainable and gets its group later, `blocks.0` stops, and `head`, which the
    optimizer owns all the time, begins.
    """

    def loop(watch: Watch) -> Outcome:
        model = net()
        model.head.requires_grad_(False)
        owned = [p for name, p in model.named_parameters() if not name.startswith("frozen")]
        optimizer = adamw(owned)
        _, expected = watch.attach(model, optimizer, order=ORDER)
        for step in range(8):
            optimizer.zero_grad()
            if step == 2:
                model.head.requires_grad_(True)
            if step == 4:
                model.frozen.requires_grad_(True)
                optimizer.add_param_group({"params": model.frozen.parameters(), "lr": 0.5})
            if step == 6:
                model.blocks[0].requires_grad_(False)
            loss_of(model, step).backward()
            expected.row()
            expected.gradients(optimizer)
            expected.before(optimizer)
            optimizer.step()
            expected.after(optimizer)
        return [], model

    expected = twins(tmp_path, loop)

    def where(layer: str, signal: str) -> list[bool]:
        return [row[layer][signal] is not None for row in expected.rows]

    assert where("head", "grad_norm") == [step >= 2 for step in range(8)]
    assert where("frozen", "adam_rms") == [step >= 4 for step in range(8)]
    assert where("blocks.0", "update_norm") == [step < 6 for step in range(8)]
    assert all(where("frozen", "param_norm"))
    assert stabkit.open_run(tmp_path).scalar("lr.1").to_dict() == dict.fromkeys(range(4, 8), 0.5)


class Tied(nn.Module):
    """An embedding whose table is the output's as well, and a branch that not all steps take."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, sparse=sparse)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.out = nn.Linear(6, 11)
        if not sparse:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor, branch: int | None = None) -> Tensor:
        x = self.table(tokens)
        for i, block in enumerate(self.blocks):
            if branch is None or i == branch:
                x = block(x).tanh()
        return F.cross_entropy(self.out(x).flatten(0, 1), tokens.roll(1, 1).flatten())


def tokens_of(step: int) -> Tensor:
    return torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step))


def test_tied_weights_count_once_and_unused_branches_are_null(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        torch.manual_seed(0)
        model, losses = Tied(), []
        optimizer = adamw(model.parameters())
        _, expected = watch.attach(model, optimizer)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(tokens_of(step), branch=step % 2)
            loss.backward()
            step_of(optimizer, expected)
            losses.append(loss.item())
        return losses, model

    expected = twins(tmp_path, loop)
    # the tied table is in `table` alone: `out` is its bias
    assert expected.layers == ["table", "blocks.0", "blocks.1", "out"]
    assert [row["blocks.1"]["grad_norm"] is None for row in expected.rows] == [1, 0, 1, 0, 1, 0]


def test_sparse_gradients_and_a_second_optimizer_for_them(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        torch.manual_seed(0)
        model, losses = Tied(sparse=True), []
        sparse = torch.optim.SparseAdam(model.table.parameters(), lr=0.1, betas=(0.9, 0.9))
        dense = adamw([p for name, p in model.named_parameters() if not name.startswith("table")])
        monitor, expected = watch.attach(model, [sparse, dense])
        expected.own_moments = False  # of rows without gradient SparseAdam's do not decay
        for step in range(6):
            model.zero_grad()
            loss = model(tokens_of(step))
            loss.backward()
            expected.row()
            for optimizer in (sparse, dense):
                expected.gradients(optimizer)
                expected.before(optimizer)
            sparse.step()
            dense.step()
            for optimizer in (sparse, dense):
                expected.after(optimizer)
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    expected = twins(tmp_path, loop)
    # the 4 tokens that never come, 6 elements each, and others that are not in a batch
    assert all((row["table"]["zero_count"] or 0) >= 4 * 6 for row in expected.rows)


def test_layouts(tmp_path: Path) -> None:
    """channels_last weights and gradients, a transposed parameter, one that is a view's slice."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
            self.turned = nn.Parameter(torch.randn(10, 8).t())
            self.slice = nn.Parameter(torch.randn(10, 4)[:, 1:3])

        def forward(self, step: int) -> Tensor:
            x = batch(step)[:, :, None, None].expand(8, 3, 5, 5)
            x = self.conv(x.contiguous(memory_format=torch.channels_last)).relu().mean((2, 3))
            return (x @ self.turned @ self.slice).square().mean()

    def loop(watch: Watch) -> Outcome:
        torch.manual_seed(0)
        model, losses = Images(), []
        assert not model.turned.is_contiguous()
        assert not model.slice.is_contiguous()
        optimizer = adamw(model.parameters())
        order = ["conv", "turned", "slice"]
        _, expected = watch.attach(model, optimizer, order=order)
        for step in range(4):
            optimizer.zero_grad()
            loss = model(step)
            loss.backward()
            step_of(optimizer, expected)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)


# --- several optimizers


def test_a_parameter_may_join_the_second_optimizer_later(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model = net()
        matrices, rest = split(model)
        first, second = SGD(matrices, lr=0.1), adamw(rest)
        _, expected = watch.attach(model, [first, second], order=ORDER)
        for step in range(6):
            model.zero_grad()
            if step == 3:
                model.frozen.requires_grad_(True)
                second.add_param_group({"params": model.frozen.parameters()})
            loss_of(model, step).backward()
            expected.row()
            for optimizer in (first, second):
                expected.gradients(optimizer)
                expected.before(optimizer)
                optimizer.step()
                expected.after(optimizer)
        return [], model

    expected = twins(tmp_path, loop)
    assert [row["frozen"]["adam_rms"] is None for row in expected.rows] == [1, 1, 1, 0, 0, 0]


def split(model: Net) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and the rest, as for Muon: of every layer a part each."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [p for p in wanted if p.ndim == 2], [p for p in wanted if p.ndim < 2]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9 or newer, for Muon")
@pytest.mark.parametrize("before", [True, False])
def test_a_layer_split_over_two_optimizers_has_one_row(before: bool, tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        matrices, rest = split(model)
        optimizers = [torch.optim.Muon(matrices[:-2], lr=0.02), adamw([*matrices[-2:], *rest])]
        monitor, expected = watch.attach(model, optimizers, order=ORDER)
        for step in range(7):
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            expected.row()
            if before:
                monitor.before_clipping()
                for optimizer in optimizers:
                    expected.gradients(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            for optimizer in optimizers:
                if not before:
                    expected.gradients(optimizer)
                expected.before(optimizer)
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                expected.after(optimizer)
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)
    lr = stabkit.open_run(tmp_path).scalar("lr.1")
    assert lr.tolist() == [0.01] * 7


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 1))
        self.g = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 3))


@pytest.mark.parametrize("before", [True, False])
def test_a_gan_has_a_row_for_each_step_of_its_discriminator(before: bool, tmp_path: Path) -> None:
    """Three steps of D, the last one's row shared with the step of G."""

    def loop(watch: Watch) -> Outcome:
        torch.manual_seed(0)
        model, losses = Gan(), []
        d, g = adamw(model.d.parameters()), Adam(model.g.parameters(), lr=0.3, betas=(0.0, 0.9))
        monitor, expected = watch.attach(model, [d, g], numbered)

        def update(optimizer: Optimizer, loss: Tensor) -> None:
            loss.backward()
            expected.gradients(optimizer)
            if before:
                monitor.before_clipping(optimizer)
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)
            expected.before(optimizer)
            optimizer.step()
            expected.after(optimizer)
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())

        for step in range(12):
            real, noise = batch(step), batch(100 + step)
            model.zero_grad()
            expected.row()
            update(d, (model.d(model.g(noise).detach()) - model.d(real)).mean())
            if step % 3 == 2:
                model.zero_grad()
                update(g, -model.d(model.g(noise)).mean())
        return losses, model

    expected = twins(tmp_path, loop)
    has_g = [row["g.0"]["grad_norm"] is not None for row in expected.rows]
    assert has_g == [step % 3 == 2 for step in range(12)]


def test_an_optimizer_of_every_second_iteration(tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        matrices, rest = split(model)
        often, seldom = adamw(rest), SGD(matrices, lr=0.1)
        monitor, expected = watch.attach(model, [often, seldom], order=ORDER)
        for step in range(8):
            often.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            step_of(often, expected)
            if step % 2:
                expected.gradients(seldom)
                expected.before(seldom)
                seldom.step()
                expected.after(seldom)
                seldom.zero_grad()
            monitor.log(loss=loss)
            expected.log(loss)
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)


def test_optimizers_that_step_within_the_backward_pass(tmp_path: Path) -> None:
    """One for each parameter, which drops its gradient at once to save memory."""

    def loop(watch: Watch) -> Outcome:
        model, losses = net(), []
        optimizers = {p: adamw([p]) for p in model.parameters() if p.requires_grad and p.numel()}
        _, expected = watch.attach(model, list(optimizers.values()), order=ORDER)

        def update(p: Tensor) -> None:
            expected.gradients(optimizers[p])
            expected.before(optimizers[p])
            optimizers[p].step()
            expected.after(optimizers[p])
            p.grad = None

        for p in optimizers:
            p.register_post_accumulate_grad_hook(update)
        for step in range(4):
            expected.row()
            loss = loss_of(model, step)
            loss.backward()
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)


# --- what a Monitor is given


def test_wrong_optimizers_are_refused_before_anything_is_held(tmp_path: Path) -> None:
    model = net()

    class Wrapper:
        def step(self) -> None: ...

    optimizer = adamw(model.parameters())
    for wrong in ([], [optimizer, optimizer]):
        with pytest.raises(ValueError, match="give an optimizer, or a list of different ones"):
            stabkit.Monitor(model, wrong, tmp_path, full_every=1)
    for strange in (Wrapper(), [optimizer, Wrapper()]):
        with pytest.raises(TypeError, match="Wrapper has no step hooks"):
            stabkit.Monitor(model, strange, tmp_path, full_every=1)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_pre_hooks
    stabkit.Monitor(model, optimizer, tmp_path, full_every=1).close()


def test_layers_may_be_chosen_and_left_out(tmp_path: Path) -> None:
    def chosen(name: str) -> str | None:
        if name.startswith(("stem", "head")):
            return "ends"
        return None if "bias" in name or name == "temperature" else "middle"

    def loop(watch: Watch) -> Outcome:
        model = net()
        optimizer = adamw(model.parameters())
        _, expected = watch.attach(model, optimizer, chosen, layer_of=chosen)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            expected.row()
            expected.gradients(optimizer)
            expected.before(optimizer)
            optimizer.step()
            expected.after(optimizer)
        return [], model

    expected = twins(tmp_path, loop)
    assert expected.layers == ["ends", "middle"]


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["capturable", "fused", "foreach"] if ON_CUDA else ["fused"])
def test_optimizers_on_a_gpu_under_a_scaler(how: str, tmp_path: Path) -> None:
    def loop(watch: Watch) -> Outcome:
        model, losses = net().to(DEVICE), []
        optimizer = adamw(model.parameters(), **{how: True})
        scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=2)
        _, expected = watch.attach(model, optimizer, order=ORDER, scaler=scaler)
        expected.begins_when_skipped = how == "fused"
        for step in range(7):
            optimizer.zero_grad()
            loss = (model(batch(step).to(DEVICE)) - 1).square().mean()
            scaler.scale(loss).backward()
            skipped = step in (0, 4)
            if skipped:
                model.head.weight.grad[1, 1] = math.inf
            expected.row()
            expected.gradients(optimizer, scaler.get_scale())
            expected.before(optimizer, scaler.get_scale())
            scaler.step(optimizer)
            expected.after(optimizer, skipped)
            scaler.update()
            losses.append(loss.item())
        return losses, model

    twins(tmp_path, loop)


@pytest.mark.parametrize(("skips", "found"), [(10, []), (13, [0])])
def test_a_scaler_that_finds_no_scale_is_an_event(
    tmp_path: Path, skips: int, found: list[int]
) -> None:
    """Whatever the scale, the gradients are not finite: the eleventh step says so of the first."""
    model = net()
    optimizer = adamw(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    stops: list[int] = []
    with stabkit.Monitor(
        model, optimizer, tmp_path, scaler=scaler, flush_every=4, full_every=1
    ) as monitor:
        monitor.on("nonfinite", lambda event: stops.append(event.step))
        for step in range(16):
            optimizer.zero_grad()
            loss = loss_of(model, step) * (math.inf if step < skips else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    log = [(event["step"], event["kind"]) for event in stabkit.open_run(tmp_path).log_entries()]
    assert sorted(log) == [(at, kind) for at in found for kind in ("confirmed", "nonfinite")]
    assert stops == found


def test_gradients_that_no_step_follows_stay_in_their_row(tmp_path: Path) -> None:
    """Those of the second optimizer are told before clipping; the first comes round again."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (first, second)]
    with stabkit.Monitor(
        nn.Sequential(first, second), optimizers, tmp_path, full_every=1
    ) as monitor:
        for step in range(2):
            for module in (first, second):
                module.weight.grad = torch.full_like(module.weight, step + 1.0)
            optimizers[0].step()
            if step == 0:
                monitor.before_clipping(optimizers[1])
    norms = stabkit.open_run(tmp_path).signals(["grad_norm"])["grad_norm"]
    assert norms.fillna(-1).tolist() == [2.0, 2.0, 4.0, -1.0]


def test_a_constructor_that_is_refused_late_leaves_nothing_behind(tmp_path: Path) -> None:
    model = net()
    optimizer = adamw(model.parameters())
    with pytest.raises(TypeError, match=r"object is no torch\.amp\.GradScaler"):
        stabkit.Monitor(model, optimizer, tmp_path / "run", scaler=object(), full_every=1)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ForeignFolderError, match="file"):
        stabkit.Monitor(model, optimizer, tmp_path / "file", scaler=scaler, full_every=1)
    assert not optimizer._optimizer_step_pre_hooks
    assert "step" not in vars(scaler)
    with stabkit.Monitor(model, optimizer, tmp_path / "run", scaler=scaler, full_every=1):
        pass
