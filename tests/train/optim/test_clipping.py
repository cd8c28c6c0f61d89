import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stabkit
from stabkit.config import ConfigError, OptimConfig, RunConfig
from stabkit.monitor.monitor import Monitor
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.data.batches import Batch, Read, make_batch, read_batch
from stabkit.train.data.load import ImageSet, load_data
from stabkit.train.optim import clipping as stabilizers
from stabkit.train.optim.build import build_optimizer
from stabkit.train.optim.clipping import Stabilizer
from stabkit.train.state import TrainState, build_state, load_state, save_state
from tests.conftest import small_config
from tests.train.test_resume import assert_equal_trees

CPU = torch.device("cpu")
OPTIMIZERS = ["adamw", "lars", "lamb", "sgd", "stable_adamw"]
CLIPS = {"global": 1.0, "layer": 0.5, "patch_embed": 1.5, "agc": 0.1, "zclip": 2.5}


class Small(nn.Module):
    """Layers: patch_embed, cls_token, blocks.0, blocks.1, norm (frozen), head (no gradient)."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 3))
        self.patch_embed = nn.Conv2d(2, 3, 2)
        self.blocks = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.norm = nn.LayerNorm(2).requires_grad_(False)
        self.head = nn.Linear(2, 2)


def small() -> Small:
    torch.manual_seed(0)
    return Small().double()


def set_grads(model: nn.Module, seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Fresh gradients, and a copy of them; none for the frozen layer and the head."""
    generator = torch.Generator().manual_seed(seed)
    grads = {}
    for name, p in model.named_parameters():
        has = p.requires_grad and not name.startswith("head")
        grad = scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = grad.to(p.dtype) if has else None
        if p.grad is not None:
            grads[name] = p.grad.clone()
    return grads


def clipped(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def norm(*grads: torch.Tensor) -> float:
    return math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=0)


def stabilizer(model: nn.Module, clip: str, clip_at: float) -> Stabilizer:
    return Stabilizer(model, OptimConfig.model_validate({"clip": clip, "clip_at": clip_at}))


@pytest.mark.parametrize("clip_at", [0.3, 2.0, 1e6])
def test_global_is_one_factor_of_the_total_norm(clip_at: float) -> None:
    model = small()
    acting = stabilizer(model, "global", clip_at)
    grads = set_grads(model, 1)
    acting.before_step()
    factor = min(1.0, clip_at / norm(*grads.values()))
    close(clipped(model), {n: factor * g for n, g in grads.items()})


def test_layer_is_a_factor_of_each_layers_own_norm() -> None:
    model = small()
    acting = stabilizer(model, "layer", 2.5)
    grads = set_grads(model, 1)
    acting.before_step()
    layers = [
        ["patch_embed.weight", "patch_embed.bias"],
        ["cls_token"],
        ["blocks.0.weight", "blocks.0.bias"],
        ["blocks.1.weight", "blocks.1.bias"],
    ]
    assert sorted(n for layer in layers for n in layer) == sorted(grads)
    factors = [min(1.0, 2.5 / norm(*(grads[n] for n in layer))) for layer in layers]
    assert min(factors) < 1.0 == max(factors), "the test's threshold must divide the layers"
    expected = {n: f * grads[n] for layer, f in zip(layers, factors, strict=True) for n in layer}
    close(clipped(model), expected)


def test_agc_bounds_each_unit_by_its_weights() -> None:
    """Brock et al. 2021: rows and filters; a vector is one unit; a zero weight counts as 1e-3."""
    model = small()
    with torch.no_grad():
        model.blocks[0].weight[1] = 0.0
    acting = stabilizer(model, "agc", 0.4)
    set_grads(model, 1)
    with torch.no_grad():
        model.blocks[1].weight.grad[0] *= 1e-4  # a unit that is not clipped
    grads = {n: g.clone() for n, g in clipped(model).items()}
    acting.before_step()
    expected = {}
    for n, p in model.named_parameters():
        if n not in grads:
            continue
        expected[n] = grads[n].clone()
        units = expected[n] if p.ndim > 1 else [expected[n]]
        weights = p.detach() if p.ndim > 1 else [p.detach()]
        for unit, weight in zip(units, weights, strict=True):
            unit *= min(1.0, 0.4 * max(norm(weight), 1e-3) / norm(unit))
    close(clipped(model), expected)
    assert clipped(model)["blocks.1.weight"][0].equal(grads["blocks.1.weight"][0])


def spiky_norms(count: int) -> list[float]:
    """Lognormal scales with spikes, one of them in the warm-up, and values that are no numbers."""
    scales = np.exp(0.2 * np.random.default_rng(0).standard_normal(count))
    scales[[12, 40, 41, 42, 60]] *= 50
    scales[[5, 33, 50]] = np.nan, np.inf, np.nan
    return scales.tolist()


@pytest.mark.lengthy
def test_zclip_equals_the_published_algorithm() -> None:
    """Kumar et al. 2025: plain mean and variance of 25 values, then exponential ones."""
    model = small()
    acting = stabilizer(model, "zclip", 2.5)
    early: list[float] = []
    mean = variance = math.nan
    outliers = 0
    for step, scale in enumerate(spiky_norms(90)):
        grads = set_grads(model, step, scale)
        acting.before_step()
        total = norm(*grads.values())
        target = total
        if not math.isfinite(total):
            assert all(g.equal(grads[n]) or g.isnan().any() for n, g in clipped(model).items())
            continue
        if len(early) < 25:
            early.append(total)
            mean, variance = float(np.mean(early)), float(np.var(early))
        else:
            z = (total - mean) / math.sqrt(variance)
            if z > 2.5:
                target = mean + 2.5**2 * math.sqrt(variance) / z
                outliers += 1
            mean = 0.97 * mean + 0.03 * target
            variance = 0.97 * variance + 0.03 * (target - mean) ** 2
        # norms are summed in another order: a few units in the last place, times 90 steps
        expected = {n: target / total * g for n, g in grads.items()}
        for n, g in clipped(model).items():
            torch.testing.assert_close(g, expected[n], rtol=1e-10, atol=0)
        np.testing.assert_allclose(acting.memory[1:].tolist(), [mean, variance], rtol=1e-10)
    assert outliers >= 3


@pytest.mark.lengthy
def test_patch_embed_is_clipped_alone_and_to_its_running_norm() -> None:
    model = small()
    acting = stabilizer(model, "patch_embed", 1.5)
    early: list[float] = []
    mean = math.nan
    spikes = 0
    for step, scale in enumerate(spiky_norms(90)):
        grads = set_grads(model, step, scale)
        acting.before_step()
        own = norm(grads["patch_embed.weight"], grads["patch_embed.bias"])
        factor = 1.0
        if len(early) < 25:
            if math.isfinite(own):
                early.append(own)
                mean = float(np.mean(early))
        elif not math.isnan(own):
            factor = min(1.0, 1.5 * mean / own) if math.isfinite(own) else 1.0
            spikes += factor < 0.5
            mean = 0.97 * mean + 0.03 * min(own, 2.0 * mean)
        for n, g in clipped(model).items():
            expected = (factor if n.startswith("patch_embed") else 1.0) * grads[n]
            torch.testing.assert_close(g, expected, rtol=1e-10, atol=0, equal_nan=True)
        if early:
            assert float(acting.memory[1]) == pytest.approx(mean, rel=1e-10)
    assert spikes >= 3


@pytest.mark.lengthy
def test_a_threshold_below_the_running_norm_follows_the_gradient_up_and_down() -> None:
    model = small()
    acting = stabilizer(model, "patch_embed", 0.5)
    for scale in (1.0, 1.8, 0.2):
        for _ in range(300):
            grads = set_grads(model, 0, scale)
            acting.before_step()
        torch.testing.assert_close(
            clipped(model)["patch_embed.weight"],
            0.5 * grads["patch_embed.weight"],
            rtol=1e-3,
            atol=0,
        )


@pytest.mark.parametrize("clip", ["patch_embed", "zclip"])
def test_zero_gradients_do_not_lock_the_clipping(clip: str) -> None:
    model = small()
    acting = stabilizer(model, clip, 1.0)
    for _ in range(30):
        set_grads(model, 0, 0.0)
        acting.before_step()
    grads = set_grads(model, 1)
    acting.before_step()
    for n, g in clipped(model).items():
        assert g.equal(grads[n])
    assert acting.memory[1] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip", CLIPS)
def test_one_bad_value_spoils_no_other_tensor_and_no_memory(clip: str, value: float) -> None:
    model = small()
    acting = stabilizer(model, clip, CLIPS[clip])
    grads = set_grads(model, 1)
    with torch.no_grad():
        model.patch_embed.weight.grad[0, 0, 0, 0] = value
    acting.before_step()
    for n, g in clipped(model).items():
        assert n == "patch_embed.weight" or g.isfinite().all(), n
        assert g.norm() <= grads[n].norm() or n == "patch_embed.weight"
    assert acting.memory.tolist() == [0, 0, 0]


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(w in str(func) for w in ("_local_scalar_dense", "nonzero", "is_nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_never_waits_and_skipping_waits_once(clip: str) -> None:
    for skip in (False, True):
        model = small()
        config = {"clip": clip, "clip_at": CLIPS[clip], "skip_nonfinite": skip}
        acting = Stabilizer(model, OptimConfig.model_validate(config))
        set_grads(model, 1)
        with Waits() as waits:
            acting.before_step()
        assert waits.count == skip


@pytest.mark.parametrize("bad_step", [0, 2])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_nothing_behind(name: str, value: float, bad_step: int) -> None:
    """Weights and the whole optimizer state, step counts included, equal to the last bit."""
    config = OptimConfig(name=name, skip_nonfinite=True, clip="zclip", clip_at=2.5)
    ends = []
    for insert in (False, True):
        model = small()
        optimizer = build_optimizer(model, config)
        acting = Stabilizer(model, config)
        acting.attach(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        for step in range(4):
            if insert and step == bad_step:
                before = copy.deepcopy(model.state_dict())
                set_grads(model, 99)
                with torch.no_grad():
                    model.cls_token.grad[0, 0, 1] = value
                optimizer.step()
                for n, p in model.state_dict().items():
                    assert p.equal(before[n]), n
            set_grads(model, step)
            optimizer.step()
        ends.append([model.state_dict(), optimizer.state_dict(), acting.state_dict()])
    assert_equal_trees(ends[0], ends[1])


def test_finite_gradients_whose_squares_overflow_are_not_skipped() -> None:
    model = small().float()
    acting = Stabilizer(model, OptimConfig(skip_nonfinite=True))
    set_grads(model, 0, 1e25)
    acting.before_step()
    assert not acting.skipped
    assert len(clipped(model)) == 7


@pytest.mark.parametrize("clip", ["global", "layer", "agc"])
def test_the_largest_finite_spike_is_clipped_like_any_other(clip: str) -> None:
    """Its square does not fit float32."""
    model = small().float()
    acting = stabilizer(model, clip, CLIPS[clip])
    set_grads(model, 0, 1e25)
    acting.before_step()
    for n, g in clipped(model).items():
        limit = CLIPS[clip]
        if clip == "agc":
            limit *= max(1e-3, norm(model.get_parameter(n).detach()))
        assert norm(g) <= limit * (1 + 1e-5), n


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "case", ["method.queue=200", "model.mlp_norm=batch", "model.patch_norm=batch"]
)
def test_a_step_on_a_broken_image_leaves_nothing_behind(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass has moved BN, twin and queue before any gradient shows what is wrong."""
    config = small_config(case, "optim.skip_nonfinite=true")
    plain = loop.make_batch

    def broken(config: RunConfig, read: Read, device: torch.device) -> Batch:
        batch = plain(config, read, device)
        if read.step == 6:
            batch.view1[0, 0, 0, 0] = math.nan
        return batch

    monkeypatch.setattr(loop, "make_batch", broken)
    assert loop.train(config, RunDir(tmp_path)).reason is None
    run = stabkit.open_run(tmp_path)
    skipped = run.scalar("skipped")
    assert skipped.index[skipped > 0].tolist() == [6]
    loss = run.scalar("loss")
    assert loss.index[~np.isfinite(loss)].tolist() == [6]
    content = torch.load(RunDir(tmp_path).checkpoint_file, weights_only=True)
    for part in ("model", "bank"):
        for name, tensor in content[part].items():
            finite = not torch.is_tensor(tensor) or tensor.isfinite().all()
            assert finite, name
    if "queue" in case:
        assert int(content["model"]["queue.added"]) == (config.train.steps - 1) * 16


@pytest.mark.lengthy
def test_the_recorded_gradient_is_the_one_before_clipping(tmp_path: Path) -> None:
    settings = [
        *("optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.lr=0.5"),
        *("optim.lr_rule=none", "optim.warmup_steps=0", "train.steps=1"),
        *("optim.clip=global", "optim.clip_at=0.001"),
    ]
    config = small_config(*settings)
    loop.train(config, RunDir(tmp_path))
    state, images = fresh(config)
    start = copy.deepcopy(state.model.online.state_dict())
    state.optimizer.register_step_pre_hook(lambda *_: grads.update(clone_grads(state)))
    grads: dict[str, torch.Tensor] = {}
    with Monitor(state.model.online, state.optimizer, tmp_path / "raw") as monitor:
        step(config, state, monitor, images, 0)
    total = norm(*grads.values())
    assert total > 0.1, "far above the threshold"
    recorded = stabkit.open_run(tmp_path).scalar("grad_norm_total")
    assert recorded.tolist() == pytest.approx([total], rel=1e-5)
    trained = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    for name, grad in grads.items():
        moved = start[name] - 0.5 * 0.001 / total * grad
        # float32: the step is 5e-4 of a weight or less, its own rounding below the weight's
        torch.testing.assert_close(trained[f"online.{name}"], moved, rtol=2e-7, atol=1e-8)
    distance = norm(*(trained[f"online.{n}"].double() - start[n].double() for n in grads))
    assert distance == pytest.approx(0.5 * 0.001, rel=1e-2)


def clone_grads(state: TrainState) -> dict[str, torch.Tensor]:
    parameters = state.model.online.named_parameters()
    return {n: p.grad.clone() for n, p in parameters if p.grad is not None}


def fresh(config: RunConfig) -> tuple[TrainState, ImageSet]:
    images, _ = load_data(config.data)
    return build_state(config, len(images), CPU, len(images.classes)), images


def step(
    config: RunConfig, state: TrainState, monitor: Monitor, images: ImageSet, number: int
) -> None:
    batch = make_batch(config, read_batch(config, images, number), CPU)
    loop.train_step(config, state, monitor, batch, number, len(images.classes))


def steps(
    config: RunConfig, state: TrainState, images: ImageSet, folder: Path, first: int, last: int
) -> None:
    with Monitor(state.model.online, state.optimizer, folder, first_step=first) as monitor:
        state.stabilizer.attach(state.optimizer)
        for number in range(first, last):
            step(config, state, monitor, images, number)


@pytest.fixture
def short_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stabilizers, "WARMUP", 3)


@pytest.mark.lengthy
@pytest.mark.usefixtures("short_warmup")
@pytest.mark.parametrize(
    "settings",
    [
        # thresholds at which most steps are clipped, so that the memory decides the weights
        ["optim.clip=zclip", "optim.clip_at=0.1"],
        ["optim.clip=patch_embed", "optim.clip_at=0.8"],
        ["optim.name=lars", "optim.lr=1.0"],
        ["optim.name=lamb"],
        ["optim.name=sgd"],
        ["optim.name=stable_adamw", "optim.skip_nonfinite=true"],
    ],
    ids=lambda s: s[0],
)
def test_a_stopped_and_continued_training_equals_the_unbroken_one(
    tmp_path: Path, settings: list[str]
) -> None:
    config = small_config(*settings, "knn.every=100")
    unbroken, images = fresh(config)
    steps(config, unbroken, images, tmp_path / "unbroken", 0, 12)
    stopped, _ = fresh(config)
    steps(config, stopped, images, tmp_path / "stopped", 0, 7)
    save_state(stopped, config, 7, tmp_path / "last.pt")
    again, _ = fresh(config)
    assert load_state(again, config, tmp_path / "last.pt") == 7
    steps(config, again, images, tmp_path / "stopped", 7, 12)
    for part in ("model", "optimizer", "stabilizer"):
        assert_equal_trees(getattr(unbroken, part).state_dict(), getattr(again, part).state_dict())
    if "clip" in settings[0]:
        plain, _ = fresh(small_config("knn.every=100"))
        steps(config, plain, images, tmp_path / "plain", 0, 12)
        name = "online.backbone.patch_embed.proj.weight"
        assert not plain.model.state_dict()[name].equal(unbroken.model.state_dict()[name])


def test_defaults_change_no_gradient() -> None:
    state, _ = fresh(small_config())
    state.stabilizer.attach(state.optimizer)
    assert not state.optimizer._optimizer_step_pre_hooks
    assert not state.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.clip=zclip"], r"optim: clip zclip needs clip_at, a z-score, e\.g\. 2\.5"),
        (["optim.clip_at=1"], r"clip_at 1\.0 without clip: one of global, layer, patch_embed"),
        (["optim.clip=all"], r"optim\.clip = 'all': should be none, global"),
        (["optim.clip=agc", "optim.clip_at=0"], r"optim\.clip_at = 0: should be a number above 0"),
        (["optim.name=adam"], r"optim\.name = 'adam': should be adamw, lars"),
        (["optim.name=sgd", "optim.beta2=0.95"], r"beta2 0\.95 has no meaning for sgd, only for a"),
        (["optim.momentum=0.5"], r"momentum 0\.5 has no meaning for adamw, only for sgd, lars"),
        (["optim.name=lamb", "optim.trust=0.1"], r"trust 0\.1 has no meaning for lamb, only for l"),
        (
            ["optim.clip=patch_embed", "optim.clip_at=2", "model.freeze_patch_embed=true"],
            "clip patch_embed has nothing to clip: model.freeze_patch_embed is true",
        ),
    ],
)
def test_settings_without_meaning_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(*settings)


def test_a_model_without_patch_embed_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no trained layer patch_embed; its layers: 0"):
        stabilizer(model, "patch_embed", 1.5)
