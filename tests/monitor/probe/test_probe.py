"""A look at a model leaves nothing behind, whatever the model does in its forward."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabkit.monitor.layers import layer_of
from stabkit.monitor.probe.probe import Probe, ProbePass, looking
from stabkit.monitor.signals import attention, distances, features  # noqa: F401
from stabkit.monitor.signals.signal import SIGNALS, ProbeSignal
from tests.train.processes import exit_codes, start

LEVELS = ("attention", "features")


class Restless(nn.Module):
    """Dropout, BatchNorm, draws from every generator, buffers written and rebound in forward."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 16, dropout=0.5, batch_first=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.register_buffer("queue", torch.zeros(8, 16))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("expanded", torch.zeros(1).expand(3))
        self.norm.track_running_stats = True
        self.fails = fails
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.queue = torch.cat([self.queue[1:], torch.rand(1, 16)])
        nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)
        self.norm.running_mean += 1
        self.expanded.data.untyped_storage()[0] = 1
        self.drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        x = self.norm(self.patch_embed(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        if self.fails:
            raise RuntimeError("planned")
        out: Tensor = self.head(x.mean(dim=1))
        return out


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def probe_of(target: nn.Module | None = None) -> Probe:
    x = images()
    return Probe(x, x + 0.1, loss=lambda model: model(x).square().mean(), target=target)


def look(model: nn.Module, probe: Probe) -> dict[str, Any]:
    with looking(model) as bare:
        seen = ProbePass(bare, probe, layer_of, [])
        signals = [s for s in SIGNALS.values() if s.level in LEVELS and issubclass(s, ProbeSignal)]
        assert len(signals) >= 11
        signals.sort(key=lambda signal: LEVELS.index(signal.level))
        return {signal.name: signal().measure(seen) for signal in signals}


def built(seed: int, fails: bool = False) -> Restless:
    torch.manual_seed(seed)
    model = Restless(fails)
    model.blocks[1].eval()  # modes that differ from module to module
    return model


def train(probing: bool, fails: bool, steps: int = 3) -> list[Any]:
    """Everything that a training consists of, after each step."""
    model, target = built(0), built(1)
    model.patch_embed.requires_grad_(False)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    history: list[Any] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3, 16, 16)).square().mean()
        loss.backward()
        if probing:
            model.fails = target.fails = fails
            expectation = (
                pytest.raises(RuntimeError, match="planned") if fails else contextlib.nullcontext()
            )
            with expectation:
                look(model, probe_of(target))
            model.fails = target.fails = False
        optimizer.step()
        for module in (model, target):
            history += [value.clone() for value in module.state_dict().values()]
            history += [None if p.grad is None else p.grad.clone() for p in module.parameters()]
            history.append([m.training for m in module.modules()])
            history.append([len(m._forward_hooks) for m in module.modules()])
            history.append([len(m._forward_pre_hooks) for m in module.modules()])
        history += [loss.detach(), torch.get_rng_state(), random.getstate()[1]]
        history += [np.random.get_state()[1], torch.backends.mha.get_fastpath_enabled()]
        history.append([p.requires_grad for p in model.parameters()])
    return history


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_is_the_same_to_the_last_bit(fails: bool) -> None:
    pairs = zip(train(False, fails), train(True, fails), strict=True)
    for i, (expected, found) in enumerate(pairs):
        if isinstance(expected, Tensor):
            assert torch.equal(expected, found), i
        elif isinstance(expected, np.ndarray):
            assert np.array_equal(expected, found), i
        else:
            assert expected == found, i


def test_buffers_keep_their_identity_and_version() -> None:
    model = built(0)
    before = dict(model.named_buffers())
    saved = (model.norm.weight.detach().requires_grad_() * before["queue"].sum()).exp()
    look(model, probe_of(built(1)))
    after = dict(model.named_buffers())
    assert all(after[name] is before[name] for name in before)
    saved.sum().backward()  # a graph that holds a buffer is not invalidated


def test_every_look_draws_the_same() -> None:
    model, probe = built(0), probe_of(built(1))
    look(model, probe)
    first = list(model.drawn)
    torch.rand(5), random.random(), np.random.rand()
    look(model, probe)
    assert model.drawn == first


@pytest.mark.lengthy
def test_evaluation_is_eager_and_unwrapped() -> None:
    compiled = 0

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        forward: Callable[..., Any] = graph.forward
        return forward

    inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    inner[0].compile(backend=backend)  # type: ignore[no-untyped-call]
    whole: Any = torch.compile(inner, backend=backend)
    with looking(whole) as model:
        assert model is inner
        assert not model.training
        seen = ProbePass(model, Probe(torch.ones(2, 4)), layer_of, [])
        assert seen.embedding1.shape == (2, 4)
        assert list(seen.watched.outputs) == ["0"]
    assert compiled == 0
    assert inner.training
    whole(torch.ones(2, 4))
    assert compiled > 0  # and compiles as ever afterwards


def test_autocast_of_the_training_does_not_reach_the_probe() -> None:
    model = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with looking(model) as bare:
            assert bare(torch.ones(2, 4)).dtype == torch.float32
        assert model(torch.ones(2, 4)).dtype == torch.bfloat16


def test_views_of_several_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            out: Tensor = self.linear(x) + shift
            return out

    model, x = Two(), torch.ones(2, 2)
    for view in ((x, x), {"x": x, "shift": x}):
        seen = ProbePass(model, Probe(view), layer_of, [])
        assert torch.equal(seen.embedding1, model(x, x))


def test_one_forward_serves_all_signals_of_a_view() -> None:
    calls = []

    def embed(model: nn.Module, view: Tensor) -> Tensor:
        calls.append(model)
        out: Tensor = model(view)
        return out

    model, target = built(0), built(1)
    x = images()
    probe = Probe(x, x, embed, lambda model: model(x).square().mean(), target)
    look(model, probe)
    assert calls == [model, model, target]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: Probe(x, embed=lambda model, view: view), r"\(4, 3, 16, 16\).*\[B, D\].*embed="),
        (lambda x: Probe(x[:1]), r"\(1, 16\).*at least two samples"),
        (lambda x: Probe(x, embed=lambda model, view: [view]), "a list"),
    ],
)
def test_features_that_are_no_table_are_refused(
    make: Callable[[Tensor], Probe], words: str
) -> None:
    with looking(built(0)) as model, pytest.raises(ValueError, match=words):
        _ = ProbePass(model, make(images()), layer_of, []).embedding1


def test_what_the_probe_lacks_is_named() -> None:
    with looking(built(0)) as model:
        seen = ProbePass(model, Probe(images()), layer_of, [])
        with pytest.raises(ValueError, match="view2 is not given"):
            _ = seen.embedding2
        with pytest.raises(ValueError, match="target is not given"):
            _ = seen.target_embedding


def test_a_forward_that_trains_is_not_silent() -> None:
    class Moving(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = self.weight.data * 0.9
            return super().forward(x)

    model = nn.Sequential(nn.Linear(2, 2), Moving(2, 2))
    x = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"changed 1 of its parameters, 1\.weight first"):
        look(model, Probe(x, x, None, lambda m: m(x).sum(), copy.deepcopy(model)))
    nn.init.constant_(model[0].bias, float("nan"))
    with looking(model[0]):
        pass  # a parameter that is not a number has not changed


def _sharded(folder: Path) -> None:
    """FSDP2: the next steps after a probe are as without, and the values those of one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ends = []
    x = images()

    def pieces(seed: int) -> Any:
        torch.manual_seed(seed)
        layers = [nn.TransformerEncoderLayer(16, 2, 16, 0.0, batch_first=True) for _ in range(2)]
        return nn.Sequential(nn.Linear(48, 16), nn.Sequential(*layers))

    def embed(model: nn.Module, view: Tensor) -> Tensor:
        out: Tensor = model(
            view.flatten(2).unflatten(2, (16, 16)).transpose(1, 2).flatten(2).reshape(4, 16, 48)
        )
        return out.mean(dim=1)

    def shard(model: Any) -> Any:
        for block in model[1]:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    whole, whole_target = pieces(0), pieces(1)
    probe = Probe(x, x + 0.1, embed, lambda model: embed(model, x).square().mean(), whole_target)
    expected = look(whole, probe)
    for probing in (False, True):
        model, target = shard(pieces(0)), shard(pieces(1))
        sharded = Probe(x, x + 0.1, embed, probe.loss, target)
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            embed(model, x + dist.get_rank()).square().mean().backward()
            if probing:
                found = look(model, sharded)
                if step == 0:
                    _same_signals(expected, found)
            optimizer.step()
        ends.append([p.detach().to_local().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    (folder / str(dist.get_rank())).touch()
    dist.destroy_process_group()


def _same_signals(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # norms are summed over shards: another order of at most 2,304 terms
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        else:
            assert list(found[name]) == list(value)
            for layer in value:
                torch.testing.assert_close(found[name][layer], value[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.processes
def test_a_sharded_model_is_probed_by_all_processes(tmp_path: Path) -> None:
    codes = exit_codes(start(2, _sharded, tmp_path))
    assert codes == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
