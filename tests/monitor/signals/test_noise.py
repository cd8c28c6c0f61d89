"""The noise scale against per-sample gradients and a known covariance, in one process and two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import stabkit
from stabkit.monitor.signals.noise import GradientNoise
from stabkit.monitor.signals.signal import SIGNALS
from stabkit.train.parallel.reduce import process_group
from tests.train.processes import results

BATCH = 24


def accumulate(
    noise: GradientNoise, parameters: list[nn.Parameter], parts: list[list[Tensor]]
) -> None:
    """Return a step's gradients, added up as backward does: of each micro-batch its mean over N."""
    for p in parameters:
        p.grad = None
    for part in parts:
        for p, gradient in zip(parameters, part, strict=True):
            p.grad = gradient / len(parts) if p.grad is None else p.grad + gradient / len(parts)
        noise.micro_batch(parameters)


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(inputs), targets)


def sample_gradients() -> Tensor:
    """Return [samples, elements], from one backward pass each."""
    model, inputs, targets = regression()
    rows = []
    for i in range(BATCH):
        loss = loss_of(model, inputs[i : i + 1], targets[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def direct(groups: list[list[int]]) -> dict[str, float]:
    """Apply the formulas of the paper, from the samples of each part that is used."""
    each = sample_gradients()
    size = len(groups[0])
    small = sum(float(each[rows].mean(0).square().sum()) for rows in groups) / len(groups)
    big = float(each.mean(0).square().sum())
    signal = (BATCH * big - size * small) / (BATCH - size)
    trace = (small - big) / (1 / size - 1 / BATCH)
    return {"noise_scale": trace / signal, "noise_trace": trace, "noise_signal": signal}


def rows_of(number: int) -> list[list[int]]:
    return [rows.tolist() for rows in torch.arange(BATCH).chunk(number)]


def run_step(noise: GradientNoise, number: int, scale: float = 1.0) -> dict[str, float] | None:
    model, inputs, targets = regression()
    for rows in rows_of(number):
        (loss_of(model, inputs[rows], targets[rows]) / number * scale).backward()
        noise.micro_batch(model.parameters())
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 7 * scale  # unscaled and clipped before the step
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    values = noise.step(model.parameters())
    assert all(p.grad.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    return None if values is None else {name: float(v) for name, v in values.items()}


@pytest.mark.parametrize("number", [2, 3, 8, 24])
def test_micro_batches_give_what_the_samples_gradients_give(number: int) -> None:
    values = run_step(GradientNoise(BATCH), number)
    # float64: differences of accumulated gradients lose a digit or two of sixteen
    assert values == pytest.approx(direct(rows_of(number)), rel=1e-10)
    assert set(values or ()) == {n for n, s in SIGNALS.items() if s.level == "noise"}


def test_a_common_scale_cancels_in_the_ratio_only() -> None:
    plain, scaled = (run_step(GradientNoise(BATCH), 4, scale) for scale in (1.0, 1024.0))
    assert plain is not None
    assert scaled is not None
    assert scaled["noise_scale"] == pytest.approx(plain["noise_scale"], rel=1e-10)
    assert scaled["noise_trace"] == pytest.approx(plain["noise_trace"] * 1024**2, rel=1e-10)


def test_one_part_says_nothing() -> None:
    noise = GradientNoise(BATCH)
    assert run_step(noise, 1) is None
    assert noise.step([nn.Parameter(torch.ones(3))]) is None  # micro_batch was never called
    assert run_step(noise, 2) is not None


@pytest.mark.lengthy
def test_the_estimates_are_unbiased() -> None:
    """4,000 steps of 4 micro-batches of 2 samples, gradients normal with a known covariance.

    A step's measurement is independent of the others, so their mean has a standard error s / 63;
    4 of them miss once in 16,000 draws, and the draw is fixed.
    """
    generator = torch.Generator().manual_seed(5)
    mean = torch.tensor([0.6, -0.3, 0.0, 0.2], dtype=torch.float64)
    spread = torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64)
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    noise = GradientNoise(8, decay=0.0)  # each step by itself
    found = []
    for _ in range(4000):
        draws = mean + spread * torch.randn(4, 2, 4, generator=generator, dtype=torch.float64)
        accumulate(noise, [parameter], [[part] for part in draws.mean(1)])
        values = noise.step([parameter])
        assert values is not None
        found.append(torch.stack([values["noise_trace"], values["noise_signal"]]))
    each = torch.stack(found)
    error = each.std(0) / math.sqrt(len(each))
    truth = torch.stack([spread.square().sum(), mean.square().sum()])
    assert ((each.mean(0) - truth).abs() < 4 * error).all()
    # fine enough to see the bias of what comes to mind first: |g_b|^2 is S/8 above |G|^2, and
    # B_s (|g_s|^2 - |g_b|^2) is S/4 below S
    assert (error < torch.stack([truth[0] / 4, truth[0] / 8]) / 8).all()


def test_the_scale_is_the_ratio_of_the_running_means() -> None:
    generator = torch.Generator().manual_seed(2)
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    noise, single = GradientNoise(8), GradientNoise(8, decay=0.0)
    traces, signals = [], []
    for step in range(30):
        draw = [[torch.randn(p.shape, generator=generator) + 1 for p in parameters] for _ in "12"]
        accumulate(single, parameters, draw)
        now = single.step(parameters)
        accumulate(noise, parameters, draw)
        mean = noise.step(parameters)
        assert now is not None
        assert mean is not None
        traces.append(float(now["noise_trace"]))
        signals.append(float(now["noise_signal"]))
        weights = [0.99 ** (step - i) for i in range(step + 1)]
        trace = sum(w * t for w, t in zip(weights, traces, strict=True)) / sum(weights)
        signal = sum(w * t for w, t in zip(weights, signals, strict=True)) / sum(weights)
    expected = {"noise_scale": trace / signal, "noise_trace": trace, "noise_signal": signal}
    # float32 means of 30 steps
    assert {name: float(v) for name, v in mean.items()} == pytest.approx(expected, rel=1e-4)


def test_a_step_that_a_scaler_leaves_out_does_not_stay() -> None:
    generator = torch.Generator().manual_seed(2)
    parameter = nn.Parameter(torch.zeros(3))
    noise, clean = GradientNoise(8), GradientNoise(8)
    last = None
    for step in range(8):
        draw = [[torch.randn(3, generator=generator) + 1] for _ in range(4)]
        if step == 4:  # an overflow: the scaler does not call step()
            accumulate(noise, [parameter], [[draw[0][0] * math.inf], *draw[1:]])
            continue
        accumulate(noise, [parameter], draw)
        got = noise.step([parameter])
        if step != 5:  # mixed with the overflow, it leaves the means where they were
            accumulate(clean, [parameter], draw)
            last = clean.step([parameter])
        assert got == last


def test_parameters_without_gradient_may_thaw() -> None:
    generator = torch.Generator().manual_seed(2)
    one, two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    noise = GradientNoise(8, decay=0.0)
    one_only = [torch.randn(3, generator=generator) for _ in range(2)]
    accumulate(noise, [one], [[g] for g in one_only])
    noise.step([one, two])
    draw = [[torch.randn(p.shape, generator=generator) for p in (one, two)] for _ in range(2)]
    accumulate(noise, [one, two], draw)
    got = noise.step([one, two])
    fresh = GradientNoise(8, decay=0.0)
    accumulate(fresh, [one, two], draw)
    assert got == fresh.step([one, two])


class NoReading(TorchDispatchMode):
    """Fails where the host would wait for a value of the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_no_value() -> None:
    parameter, noise = nn.Parameter(torch.zeros(3)), GradientNoise(8)
    with NoReading():
        for step in range(3):
            accumulate(noise, [parameter], [[torch.full((3,), 1.0 + i + step)] for i in range(4)])
            assert noise.step([parameter]) is not None
        with pytest.raises(AssertionError):
            parameter.sum().item()


def measure_on_ranks(number: int, how: str) -> dict[str, float] | None:
    """Each process its half of the samples, contiguous, in `number` micro-batches."""
    torch.set_num_threads(1)
    with process_group(cuda=False):
        model, inputs, targets = regression()
        half = BATCH // 2
        own = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
        noise = GradientNoise(BATCH, reduced_by="backward" if how == "ddp" else "caller")
        net = DistributedDataParallel(model) if how == "ddp" else model
        parts = list(zip(inputs[own].chunk(number), targets[own].chunk(number), strict=True))
        for i, (x, y) in enumerate(parts):
            if isinstance(net, DistributedDataParallel) and i < number - 1:
                with net.no_sync():
                    (loss_of(net, x, y) / number).backward()
            else:
                (loss_of(net, x, y) / number).backward()
            noise.micro_batch(model.parameters())
        if how == "ddp":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # does not matter here
        else:
            for parameter in model.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        values = noise.step(model.parameters())
        return None if values is None else {name: float(v) for name, v in values.items()}


@pytest.mark.processes
@pytest.mark.parametrize("number", [1, 3])
def test_two_processes_that_reduce_themselves_use_every_part(number: int, tmp_path: Path) -> None:
    first, second = results(2, tmp_path, measure_on_ranks, number, "manual")
    assert first == second
    assert first == pytest.approx(direct(rows_of(2 * number)), rel=1e-10)


@pytest.mark.processes
@pytest.mark.parametrize("number", [1, 3])
def test_two_processes_of_ddp_use_all_but_the_last(number: int, tmp_path: Path) -> None:
    first, second = results(2, tmp_path, measure_on_ranks, number, "ddp")
    assert first == second
    if number == 1:
        assert first is None
        return
    parts = rows_of(6)
    used = [part for i, part in enumerate(parts) if i not in (2, 5)]
    assert first == pytest.approx(direct(used), rel=1e-10)


def test_a_monitor_records_the_noise_signals_asked_for_and_no_other(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    asked = {"signals": "noise_trace", "samples_per_step": 8}
    with stabkit.Monitor(model, optimizer, tmp_path, **asked) as monitor:  # type: ignore[arg-type]
        for _ in range(3):
            optimizer.zero_grad()
            for part in torch.arange(24.0).view(8, 3).chunk(2):
                (model(part).square().mean() / 2).backward()
                monitor.micro_batch()
            optimizer.step()
    names = set(stabkit.open_run(tmp_path).scalars()["name"])
    assert "noise_trace" in names
    assert names.isdisjoint({"noise_scale", "noise_signal"})
