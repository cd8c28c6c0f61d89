"""The Monitor on a GPU: `make test-gpu`."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.monitor.knn.vote import knn_predict, nearest
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.signals.signal import LEVELS
from tests.gpu import DEVICE, ON_CUDA, needs_gpu, no_waits
from tests.monitor.toy import kinds

pytestmark = needs_gpu


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 8))
    return nn.Sequential(*layers).to(DEVICE)


@pytest.mark.parametrize("fused", [True, False])
def test_no_step_waits_for_the_device_with_several_optimizers(tmp_path: Path, fused: bool) -> None:
    """Over several intervals: at their ends copies begin, and are read an interval later."""
    model = small_model()
    optimizers = [
        torch.optim.AdamW(
            model[0].parameters(), lr=0.01, fused=fused, capturable=fused and ON_CUDA
        ),
        torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9),
    ]
    images = torch.randn(32, 64, device=DEVICE)
    with stabkit.Monitor(
        model, optimizers, tmp_path, flush_every=10, samples_per_step=32, full_every=1
    ) as monitor:
        for step in range(45):
            loss = model(images).square().mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            with no_waits(step > 21):  # the first step allocates, the first interval pins memory
                monitor.before_clipping()
                for optimizer in optimizers:
                    optimizer.step()
                monitor.log(loss=loss, mixed=loss if step % 2 else float(step), n=step)
    assert kinds(tmp_path) == []  # a wait would have been an error, guarded and left there
    run = stabkit.open_run(tmp_path)
    for name in ("loss", "mixed", "n"):
        assert run.scalar(name).index.tolist() == list(range(45))
    assert run.signals()["grad_norm"].notna().sum() == 45 * len(monitor.layers)


@pytest.mark.skipif(not ON_CUDA, reason="only CUDA waits")
def test_a_scaler_waits_no_more_with_a_monitor(tmp_path: Path) -> None:
    """A GradScaler itself waits once a step, which the debug mode's warnings count."""

    def waits(folder: Path | None) -> list[int]:
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        images = torch.randn(32, 64, device=DEVICE, generator=torch.Generator(DEVICE))
        monitor = None
        if folder is not None:
            monitor = stabkit.Monitor(
                model, optimizer, folder, scaler=scaler, flush_every=100, full_every=1
            )
        found = []
        for step in range(20):
            with torch.autocast("cuda", torch.float16):
                loss = model(images * (math.inf if step == 12 else 1.0)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scaler.unscale_(optimizer)
                if monitor:
                    monitor.before_clipping()
                scaler.step(optimizer)
                scaler.update()
                if monitor:
                    monitor.log(loss=loss)
            torch.cuda.set_sync_debug_mode("default")
            found.append(sum("synchroniz" in str(warning.message) for warning in caught))
        if monitor:
            monitor.close()
        return found

    bare = waits(None)
    assert any(bare)
    assert waits(tmp_path) == bare
    assert kinds(tmp_path) == ["nonfinite"]


@pytest.mark.parametrize("signals", [*LEVELS, list(LEVELS)], ids=str)
def test_a_training_is_the_same_bit_for_bit(tmp_path: Path, signals: Any) -> None:
    def training(folder: Path | None) -> list[bytes]:
        model = small_model()
        target = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = torch.Generator(DEVICE).manual_seed(1)
        monitor = None
        if folder is not None:
            g = torch.Generator(DEVICE).manual_seed(2)
            views = [torch.randn(8, 64, device=DEVICE, generator=g) for _ in range(2)]
            probe = Probe(*views, loss=lambda m: m(views[0]).square().mean(), target=target)
            monitor = stabkit.Monitor(
                model, optimizer, folder, signals=signals, probe=probe, probe_every=3,
                flush_every=2, samples_per_step=32, full_every=1,
            )  # fmt: skip
        found = []
        for _ in range(9):
            images = torch.randn(32, 64, device=DEVICE, generator=data)
            optimizer.zero_grad()
            for part in images.chunk(2):
                loss = model(part).square().mean() / 2
                loss.backward()
                if monitor:
                    monitor.micro_batch()
            optimizer.step()
            if monitor:
                monitor.log(loss=loss)
            found.append(loss.detach())
        if monitor:
            monitor.close()
        tensors = [*found, *model.state_dict().values(), torch.rand(1, device=DEVICE)]
        return [tensor.cpu().numpy().tobytes() for tensor in tensors]

    if signals == "attention":
        pytest.skip("the model has no attention")
    assert training(tmp_path) == training(None)
    assert "monitor_failed" not in kinds(tmp_path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_values_of_a_device_that_is_not_the_current_one(tmp_path: Path) -> None:
    """A copy waited for on another device's stream would be read before it is made."""
    model = nn.Linear(2048, 2048, bias=False, device="cuda:1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    images = torch.randn(4096, 2048, device="cuda:1")
    norms = []
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=1, full_every=1) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            for _ in range(20):  # a queue for the copy to wait behind
                model(images * (step + 1)).sum().backward()
            optimizer.step()
            monitor.flush()
            assert model.weight.grad is not None
            norms.append(float(model.weight.grad.norm()))
    recorded = stabkit.open_run(tmp_path).signals()["grad_norm"]
    np.testing.assert_allclose(recorded, norms, rtol=1e-4)


class Watched(nn.Module):
    """A convolution, attention by torch's fused kernel, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        result: torch.Tensor = self.head(mixed.mean(1))
        return result


OPTIMIZERS: dict[str, dict[str, bool]] = {"foreach": {"foreach": True}, "fused": {"fused": True}}
if ON_CUDA:
    OPTIMIZERS["capturable"] = {"capturable": True}
LOOPS = ("fp32", "tf32", "bf16", "channels_last", "compiled")


@pytest.fixture
def deterministic() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("how", OPTIMIZERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop_is_recorded_right_without_a_wait_and_without_a_trace(
    loop: str, how: str, tmp_path: Path, deterministic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are those of float64; weights and losses those of the same loop without a Monitor."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if loop == "compiled" and (how != "fused" or not ON_CUDA):
        pytest.skip("one compilation is enough, and on a GPU")
    torch.backends.cuda.matmul.allow_tf32 = loop == "tf32"
    norms: list[float] = []

    def training(folder: Path | None) -> list[bytes]:
        torch.manual_seed(0)
        model = Watched().to(DEVICE)
        run = torch.compile(model, dynamic=False) if loop == "compiled" else model
        data = torch.Generator(DEVICE).manual_seed(1)
        if loop == "channels_last":
            model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **OPTIMIZERS[how])
        monitor = (
            stabkit.Monitor(model, optimizer, folder, flush_every=4, full_every=1)
            if folder
            else None
        )
        losses = []
        for step in range(20):
            images = torch.randn(16, 3, 32, 32, device=DEVICE, generator=data)
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=loop == "bf16"):
                loss = run(images).float().square().mean()
            loss.backward()
            if folder is not None:
                total = sum(float(p.grad.double().square().sum()) for p in model.stem.parameters())
                norms.append(math.sqrt(total))
            with no_waits(step > 12):
                optimizer.step()
                if monitor is not None:
                    monitor.log(loss=loss)
            losses.append(loss.detach())
        if monitor is not None:
            monitor.close()
        tensors = [*losses, *model.state_dict().values()]
        return [tensor.cpu().numpy().tobytes() for tensor in tensors]

    assert training(tmp_path) == training(None)
    assert kinds(tmp_path) == []
    signals = stabkit.open_run(tmp_path).signals()
    recorded = signals.loc[signals["layer"] == "stem", "grad_norm"]
    np.testing.assert_allclose(recorded, norms, rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_where_it_is(value: float, tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    images = torch.randn(32, 64, device=DEVICE)
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=3, full_every=1) as monitor:
        for step in range(9):
            optimizer.zero_grad()
            loss = model(images).square().mean()
            loss.backward()
            if step == 5:
                model[4].weight.grad[1, 2] = value
            optimizer.step()
            monitor.log(loss=loss)
    run = stabkit.open_run(tmp_path)
    counts = run.signals().pivot(index="step", columns="layer", values="nonfinite_count")
    assert counts.loc[5, "4"] == counts.loc[5].sum() == 1
    assert counts.loc[:4].to_numpy().sum() == 0  # afterwards 0 * inf is in the weights
    assert kinds(tmp_path) == ["nonfinite"]


def test_a_training_with_a_knn_and_a_teacher_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """The samples are on the CPU, as a DataLoader gives them."""
    g = torch.Generator().manual_seed(3)
    bank, queries = ((torch.randn(n, 64, generator=g), torch.arange(n) % 4) for n in (300, 200))

    def training(folder: Path | None) -> list[bytes]:
        model = small_model()
        teacher = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        monitor = None
        if folder is not None:
            monitor = stabkit.Monitor(
                model, optimizer, folder, knn=stabkit.KNN(bank, queries, every=4), teacher=teacher,
                probe=Probe(bank[0][:16].to(DEVICE)), probe_every=3, flush_every=2, full_every=1,
            )  # fmt: skip
        found = []
        for _ in range(9):
            loss = model(torch.randn(32, 64, device=DEVICE)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
            found.append(loss.detach())
        if monitor:
            monitor.close()
        states = [*model.state_dict().values(), *teacher.state_dict().values()]
        tensors = [*found, *states, torch.rand(1), torch.rand(1, device=DEVICE)]
        return [tensor.cpu().numpy().tobytes() for tensor in tensors]

    assert training(tmp_path) == training(None)
    assert kinds(tmp_path) == []
    run = stabkit.open_run(tmp_path)
    assert run.evals("knn_heldout")["step"].tolist() == [0, 4, 8, 9]
    assert run.scalar("teacher_rank").index.tolist() == [0, 3, 6]


@pytest.mark.parametrize("size", [500, 100_000])
def test_neighbours_on_the_device_are_those_on_the_cpu(size: int) -> None:
    """Up to rounding: a query whose last neighbours are nearly as near may differ."""
    g = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(size, 64, generator=g), torch.randn(400, 64, generator=g)
    labels = torch.randint(0, 10, (size,), generator=g)
    cosines, places = nearest(queries, bank, 20)
    found = [tensor.cpu() for tensor in nearest(queries.to(DEVICE), bank.to(DEVICE), 20)]
    torch.testing.assert_close(found[0], cosines, rtol=0, atol=1e-5)
    assert (found[1] == places).all(dim=1).float().mean() > 0.95
    arguments = (queries, bank, labels, 10, 20, 0.07)
    predicted = knn_predict(*arguments)
    on_device = knn_predict(*(a.to(DEVICE) if torch.is_tensor(a) else a for a in arguments))
    assert (on_device.cpu() == predicted).float().mean() > 0.99
