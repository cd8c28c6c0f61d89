"""A teacher beside the model: what is recorded of it, and that a collapse is found without a loss.

Two loops of self-distillation, each with the part that keeps it from collapsing and without it.
"""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import stabkit
from stabkit.monitor.probe.teacher import match, taught
from stabkit.monitor.react.events import OnlineEvent
from stabkit.monitor.signals.features import effective_rank, feature_std, mean_cosine
from tests.monitor.toy import kinds

STEPS = 160


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Images:
    """Eight clusters, and half of an image's numbers hidden at random."""

    def __init__(self, apart: float) -> None:
        self.g = torch.Generator().manual_seed(1)
        self.centers = apart * torch.randn(8, 32, generator=self.g)

    def draw(self, n: int = 64) -> Tensor:
        cluster = torch.randint(8, (n,), generator=self.g)
        return self.centers[cluster] + torch.randn(n, 32, generator=self.g)

    def hidden(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=self.g) > 0.5)


@torch.no_grad()
def follow(teacher: nn.Module, model: nn.Module, momentum: float = 0.95) -> None:
    for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


Monitored = Callable[..., stabkit.Monitor]


def jepa(monitored: Monitored, sound: bool) -> list[float]:
    """Predict the features of the whole from a part; without a teacher as target it collapses."""
    torch.manual_seed(0)
    images = Images(2.0)
    encoder = nn.Sequential(mlp(32, 64, 16), nn.LayerNorm(16))
    model = nn.ModuleDict({"encoder": encoder, "predictor": mlp(16, 64, 16)})
    teacher = copy.deepcopy(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    probe = stabkit.Probe(images.draw(), embed=lambda model, view: model["encoder"](view))
    losses = []
    with monitored(model, optimizer, teacher=teacher, probe=probe, probe_every=10) as monitor:
        for _ in range(STEPS):
            x = images.draw()
            with torch.set_grad_enabled(not sound):
                target = (teacher if sound else encoder)(x)
            loss = F.mse_loss(model["predictor"](encoder(images.hidden(x))), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            follow(teacher, encoder)
            monitor.log(loss=loss)
            losses.append(loss.item())
    return losses


def dino(monitored: Monitored, sound: bool) -> list[float]:
    """Match the teacher's distribution; without centering one class takes all."""
    torch.manual_seed(0)
    images = Images(0.5)
    student = mlp(32, 64, 16)
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    center = torch.zeros(16)
    probe = stabkit.Probe(images.draw(), embed=lambda model, view: (model(view) / 0.1).softmax(1))
    losses = []
    with monitored(student, optimizer, teacher=teacher, probe=probe, probe_every=10) as monitor:
        for _ in range(STEPS):
            x = images.draw()
            with torch.no_grad():
                out = teacher(images.hidden(x))
                target = ((out - center) / 0.04).softmax(1)
            loss = -(target * (student(images.hidden(x)) / 0.1).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            follow(teacher, student)
            if sound:
                center = 0.9 * center + 0.1 * out.mean(0)
            monitor.log(loss=loss)
            losses.append(loss.item())
    return losses


@pytest.mark.lengthy
@pytest.mark.parametrize("loop", [jepa, dino])
@pytest.mark.parametrize("sound", [True, False])
def test_a_collapse_is_found_where_the_loss_looks_good(
    tmp_path: Path, loop: Callable[[Monitored, bool], list[float]], sound: bool
) -> None:
    online: list[OnlineEvent] = []

    def monitored(*args: Any, **options: Any) -> stabkit.Monitor:
        monitor = stabkit.Monitor(*args, folder=tmp_path, flush_every=20, **options)
        monitor.on("collapse", online.append)
        return monitor

    losses = loop(monitored, sound)
    run = stabkit.open_run(tmp_path)
    found = run.collapses()
    log = [(entry["kind"], entry["cause"], entry["onset"]) for entry in run.log_entries()]
    assert log == [("confirmed", "collapse", event.step) for event in online]
    assert run.scalar("teacher_distance").index.tolist() == list(range(0, STEPS, 10))
    if sound:
        assert found.empty
        assert online == []
        assert run.verdict != "collapsed"
    else:
        assert losses[-1] < losses[0] / 100, "the loss was to look good"
        assert {"probe_feature_std", "teacher_feature_std"} <= set(found["signal"])
        assert {(e.facts["signal"], e.step) for e in online} == {
            *zip(found["signal"], found["onset"], strict=True)
        }
        assert run.verdict in ("collapsed", "diverged")  # where the loss is judged as well


class Noisy(nn.Module):
    """BatchNorm, dropout and draws in forward: what a look could leave a trace in."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x)) + 1e-9 * torch.rand(())
        return out


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_training_with_it_is_the_same_to_the_last_bit(tmp_path: Path, wrapped: bool) -> None:
    def training(folder: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = Noisy()
        average = get_ema_multi_avg_fn(0.9)
        teacher = AveragedModel(model, multi_avg_fn=average) if wrapped else copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        monitor = None
        if folder:
            probe = stabkit.Probe(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))
            options: dict[str, Any] = {"teacher": teacher, "probe": probe, "probe_every": 2}
            monitor = stabkit.Monitor(model, optimizer, folder, flush_every=3, **options)
        for _ in range(9):
            x = torch.randn(16, 6)
            loss = F.mse_loss(model(x), teacher(x).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if isinstance(teacher, AveragedModel):
                teacher.update_parameters(model)
            else:
                follow(teacher, model)
        if monitor:
            monitor.close()
        assert teacher.training
        return [*model.state_dict().values(), *teacher.state_dict().values(), torch.rand(())]

    assert all(map(torch.equal, training(tmp_path), training(None)))
    assert set(kinds(tmp_path)) <= {"null_parameters"}  # a bias before BatchNorm


def test_distances_and_spreads_are_those_of_the_formulas(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, teacher, view = Noisy().eval(), Noisy(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        one, other = model(view), copy.deepcopy(teacher).eval()(view)
        apart: dict[str, float] = {}
        size: dict[str, float] = {}
        for (name, p), q in zip(model.named_parameters(), teacher.parameters(), strict=True):
            layer = "head" if name.startswith("head") else ".".join(name.split(".")[:2])
            apart[layer] = apart.get(layer, 0.0) + float((p - q).double().square().sum())
            size[layer] = size.get(layer, 0.0) + float(p.double().square().sum())
    probe = stabkit.Probe(view)
    with stabkit.Monitor(model, optimizer, tmp_path, teacher=teacher, probe=probe):
        model(view).sum().backward()
        optimizer.step()
    run = stabkit.open_run(tmp_path)
    whole = math.sqrt(sum(apart.values()) / sum(size.values()))
    assert run.scalar("teacher_distance")[0] == pytest.approx(whole, rel=1e-6)
    rows = run.signals(["target_distance"]).set_index("layer")["target_distance"]
    assert rows.to_dict() == pytest.approx(
        {layer: math.sqrt(apart[layer] / size[layer]) for layer in apart}, rel=1e-6
    )
    scalars = {name: run.scalar(name)[0] for name in run.scalars()["name"].unique()}
    # the draw in forward makes features differ in the ninth digit
    assert scalars["probe_feature_std"] == pytest.approx(float(feature_std(one)), rel=1e-6)
    assert scalars["probe_rank"] == pytest.approx(float(effective_rank(one)), rel=1e-6)
    assert scalars["teacher_feature_std"] == pytest.approx(float(feature_std(other)), rel=1e-6)
    assert scalars["teacher_rank"] == pytest.approx(float(effective_rank(other)), rel=1e-6)
    assert scalars["target_cosine"] == pytest.approx(float(mean_cosine(one, other)), rel=1e-6)


def test_without_a_probe_the_distance_alone_is_recorded(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    teacher = nn.Linear(3, 2)
    options: dict[str, Any] = {"signals": ["basic", "teacher"], "probe_every": 1}  # as by itself
    with stabkit.Monitor(model, optimizer, tmp_path, teacher=teacher, **options):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    names = set(stabkit.open_run(tmp_path).scalars()["name"].unique())
    assert "teacher_distance" in names
    assert names.isdisjoint({"teacher_rank", "teacher_feature_std", "probe_rank", "target_cosine"})


# --- which part of the model the teacher averages


class TimmEma(nn.Module):
    """As timm's ModelEmaV3 holds it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)


class MoCo(nn.Module):
    """Holds its teacher itself."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.base, self.momentum = encoder, copy.deepcopy(encoder)


def encoder() -> nn.Sequential:
    return nn.Sequential(mlp(4, 8, 8), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "teacher_of", "path"),
    [
        (encoder(), copy.deepcopy, ""),
        (encoder(), AveragedModel, ""),
        (encoder(), TimmEma, ""),
        (encoder(), lambda model: TimmEma(AveragedModel(model)), ""),
        (
            nn.ModuleDict({"encoder": encoder(), "predictor": nn.Linear(2, 2)}),
            lambda model: TimmEma(model["encoder"]), "encoder",
        ),
        (
            nn.ModuleDict({"net": nn.ModuleDict({"encoder": encoder()}), "predictor": mlp(2, 2)}),
            lambda model: copy.deepcopy(model["net"]["encoder"]), "net.encoder",
        ),
        (
            nn.ModuleDict({"backbone": encoder(), "predictor": mlp(2, 2)}),
            lambda model: nn.ModuleDict({"backbone": copy.deepcopy(model["backbone"])}), "",
        ),
        (MoCo(encoder()), lambda model: model.momentum, "base"),
    ],
)  # fmt: skip
def test_the_teacher_is_matched_with_the_part_that_it_averages(
    model: nn.Module, teacher_of: Callable[[Any], nn.Module], path: str
) -> None:
    teacher = teacher_of(model)
    found = match(model, teacher)
    assert found.path == path
    assert found.left_out == []
    names = dict(model.named_parameters())
    assert len(found.pairs) == 6
    for name, p, q in found.pairs:
        assert names[name] is p
        assert p is not q
        assert torch.equal(p, q)
    assert {id(q) for *_, q in found.pairs} == {id(q) for q in teacher.parameters()}
    before = [*model.modules()]
    with taught(model, found) as instead:
        held = {id(p) for p in instead.parameters()}
        assert held >= {id(q) for *_, q in found.pairs}
        assert held.isdisjoint({id(p) for _, p, _ in found.pairs})
    assert [*model.modules()] == before


def refused(tmp_path: Path, teacher: Any, said: str, **options: Any) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(2, 3), "two": nn.Linear(2, 3), "up": nn.Linear(3, 5)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    teacher = model if teacher == "model" else teacher
    with pytest.raises((TypeError, ValueError), match=said):
        stabkit.Monitor(model, optimizer, tmp_path / "run", teacher=teacher, **options)
    assert not (tmp_path / "run").exists()


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "model", "it is the model itself; give the copy")
    refused(tmp_path, {"weight": torch.ones(2)}, "teacher is of type dict; give the module")
    refused(tmp_path, nn.Conv2d(1, 1, 1), "no parameter of the model's names.*one.weight.*weight")
    refused(tmp_path, nn.Linear(2, 3), "fits several parts of the model, one and two; give")
    narrow = nn.ModuleDict({"one": nn.Linear(2, 4), "up": nn.Linear(3, 5)})
    refused(tmp_path, narrow, r"one.weight of shape \(4, 2\), the model of \(3, 2\)")
    probe = stabkit.Probe(torch.ones(2, 2), target=nn.Linear(3, 5))
    refused(tmp_path, nn.Linear(3, 5), "and the probe's target are two modules", probe=probe)


def test_parameters_that_the_model_lacks_are_told(tmp_path: Path) -> None:
    model = nn.ModuleDict({"up": nn.Linear(3, 5)})
    teacher = nn.ModuleDict({"up": nn.Linear(3, 5), "center": nn.Linear(1, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stabkit.Monitor(model, optimizer, tmp_path, teacher=teacher).close()
    (event,) = stabkit.rundir.RunDir(tmp_path).read_entries()
    assert event["reason"].startswith("teacher: 2 of its parameters are not in the model, center.")
