"""Count published sizes on tensors without storage, and check the promises of every backbone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stabkit
from stabkit.config import ConfigError, ModelConfig, RunConfig, run_id, validate
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.models.build import Backbone, build_backbone
from stabkit.train.state import build_state
from tests.conftest import small_config
from tests.train.test_resume import assert_equal_trees

CPU = torch.device("cpu")
SMALL = {"patch_size": 8, "width": 32, "depth": 2, "heads": 4}
PAPER: dict[str, dict[str, object]] = {
    "S": {"name": "vit_small_patch16_224", "heads": 12},
    "B": {"name": "vit_base_patch16_224"},
    "L": {"name": "vit_large_patch16_224"},
    "H": {"name": "vit_huge_patch14_224"},
}
EVERY: list[dict[str, object]] = [
    {**SMALL},
    {**SMALL, "stem": "conv"},
    {**SMALL, "mlp_norm": "batch", "qk_norm": True},
    {**SMALL, "patch_norm": "batch", "positions": "learned", "pool": "mean"},
    {**SMALL, "patch_norm": "weight", "positions": "none", "pool": "norm_then_mean"},
    {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1},
    {"name": "resnet18", "stem": "cifar"},
    {"name": "resnet18", "stem": "imagenet"},
    {"name": "resnet50", "stem": "imagenet"},
    {"name": "resnetv2_50x1_bit", "stem": "imagenet"},
]


def on_meta(settings: dict[str, object], image_size: int = 224) -> Backbone:
    with torch.device("meta"):
        return build_backbone(ModelConfig.model_validate(settings), image_size, False)


def multiply_adds(model: nn.Module, image_size: int = 224) -> float:
    """Count those of convolutions and matrix products, in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return (
        float(counter.get_total_flops()) / 2 / 1e9
    )  # the counter counts an addition as an operation of its own


def layer_norm_elements(model: nn.Module, image_size: int = 224) -> int:
    seen = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return sum(seen)


def at_depth(count: Callable[[nn.Module], float], settings: dict[str, object], depth: int) -> float:
    """Return what `count` gives at this depth, from depths 1 and 2: all blocks cost the same."""
    one, two = (count(on_meta(settings | {"depth": d})) for d in (1, 2))
    return one + (depth - 1) * (two - one)


@pytest.mark.lengthy
def test_every_block_costs_the_same() -> None:
    for count in (multiply_adds, layer_norm_elements):
        whole = count(on_meta(PAPER["S"]))
        assert at_depth(count, PAPER["S"], 12) == pytest.approx(whole, rel=1e-12)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("size", "millions", "gflops"),
    [("S", 22, 4.6), ("B", 86, 17.5), ("L", 304, 61.3), ("H", 632, 166.7)],
)
def test_vits_have_the_sizes_of_the_papers_table(size: str, millions: int, gflops: float) -> None:
    """Compare with table 2. Its conventions are inferred: only these give all its digits.

    Parameters with a classifier of 1000 classes, cut to whole millions. GFLOPs: multiply-adds of
    convolutions and matrix products plus five operations an element of a LN, over the patches
    alone; with the class token the matrix products alone come within half a percent.
    """
    model = on_meta(PAPER[size])
    classifier = 1000 * (model.num_features + 1)
    assert (sum(p.numel() for p in model.parameters()) + classifier) // 10**6 == millions
    depth = len(model.blocks)
    assert at_depth(multiply_adds, PAPER[size], depth) == pytest.approx(gflops, rel=5e-3)
    patches = PAPER[size] | {"pool": "norm_then_mean"}
    norms = at_depth(layer_norm_elements, patches, depth)
    total = at_depth(multiply_adds, patches, depth) + 5 * norms / 1e9
    assert round(total, 1) == gflops


def test_multiply_adds_of_vit_b_by_hand() -> None:
    n, d, depth = 197, 768, 12
    products = 12 * n * d * d + 2 * n * n * d  # q, k, v, out: 4; MLP: 8; scores, mixing: n²d each
    by_hand = depth * products + 196 * (3 * 16 * 16) * d
    assert at_depth(multiply_adds, PAPER["B"], depth) == pytest.approx(by_hand / 1e9, rel=1e-12)


@pytest.mark.lengthy
def test_resnets_have_their_published_sizes() -> None:
    """Compare with torchvision: 11.69M - 0.51M, 25.56M - 2.05M without classifier; 1.81, 4.09 G.

    BiT's 25.55M has the convolutions of ResNet-50 and as many norms, but for the four shortcuts'.
    """
    shortcuts = 2 * (256 + 512 + 1024 + 2048)
    cases = [
        ("resnet18", 11_176_512, 1.81),
        ("resnet50", 23_508_032, 4.09),
        ("resnetv2_50x1_bit", 23_508_032 - shortcuts, 4.09),
    ]
    for name, parameters, gflops in cases:
        model = on_meta({"name": name, "stem": "imagenet"})
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert round(multiply_adds(model), 2) == gflops
    small = on_meta({"name": "resnet18", "stem": "cifar"}, 32)
    assert sum(p.numel() for p in small.parameters()) == 11_176_512 - 64 * 3 * (7 * 7 - 3 * 3)
    assert round(multiply_adds(small, 32), 2) == 0.56


@pytest.mark.lengthy
@pytest.mark.parametrize("size", ["S", "B"])
def test_a_conv_stem_costs_about_one_block(size: str) -> None:
    """Xiao et al. 2021, section 4, therefore leave one block out."""
    plain = at_depth(multiply_adds, PAPER[size], 12)
    stem = at_depth(multiply_adds, PAPER[size] | {"stem": "conv"}, 11)
    assert stem == pytest.approx(plain, rel=0.01)


@pytest.mark.lengthy
@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_every_backbone_gives_features_and_gradients(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_backbone(ModelConfig.model_validate(settings), 32, False)
    features: Tensor = model(torch.randn(4, 3, 32, 32))
    assert features.shape == (4, model.num_features)
    features.square().sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
    torch.manual_seed(0)
    again = build_backbone(ModelConfig.model_validate(settings), 32, False)
    assert_equal_trees(again.state_dict().keys(), model.state_dict().keys())
    for name, p in again.named_parameters():
        assert p.equal(dict(model.named_parameters())[name]), name


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.stem=conv", "model.mlp_norm=batch", "model.qk_norm=true", "model.pool=mean"],
        ["model.patch_norm=weight", "model.positions=learned"],
    ],
    ids=str,
)
def test_a_killed_run_of_a_variant_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    config = small_config(*overrides, "train.steps=10", "runtime.checkpoint_every=4")
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    loop.train(config, whole)
    step = loop.train_step

    def dies(*args: object, **kwargs: object) -> object:
        if args[4] == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, killed)
    loop.train(config, killed)
    states = [torch.load(r.checkpoint_file, weights_only=True) for r in (whole, killed)]
    assert_equal_trees(*states)
    losses = [stabkit.open_run(r.path).scalar("loss").tolist() for r in (whole, killed)]
    assert losses[0] == losses[1]


@pytest.mark.lengthy
def test_a_resnet_trains_in_the_loop(tmp_path: Path) -> None:
    content = small_config("train.steps=2", "optim.warmup_steps=0").model_dump()
    content["model"] = {"name": "resnet18", "stem": "cifar"}
    config = validate(RunConfig, content, "test")
    start = build_state(config, 64, CPU).model.state_dict()
    loop.train(config, RunDir(tmp_path))
    trained = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    assert not trained["online.backbone.conv1.weight"].equal(start["online.backbone.conv1.weight"])
    signals = stabkit.open_run(tmp_path).signals()
    first = signals[signals["step"] == 0]
    assert first["layer"].tolist()[:3] == ["conv1", "bn1", "layer1.0"]
    assert first["grad_norm"].notna().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18"}, "resnet18 needs stem: imagenet or cifar, not 'patch'"),
        (
            {"name": "resnetv2_50x1_bit", "stem": "cifar"},
            "resnetv2_50x1_bit needs stem: imagenet, not 'cifar'",
        ),
        ({"name": "resnet34", "stem": "cifar"}, "no known ResNet; known: resnet18, resnet50"),
        (
            {"name": "resnet50", "stem": "imagenet", "heads": 2, "pool": "mean"},
            "resnet50 has no heads 2, pool 'mean': settings of a ViT",
        ),
        ({**SMALL, "stem": "cifar"}, "stem 'cifar' is a ResNet's; vit takes patch or conv"),
        (
            {**SMALL, "stem": "conv", "freeze_patch_embed": True},
            "freeze_patch_embed would act on a patch projection, which stem 'conv' does not have",
        ),
        ({**SMALL, "stem": "conv", "patch_norm": "weight"}, "patch_norm would act on"),
        ({**SMALL, "stem": "conv", "patch_size": 7}, "needs a patch_size of 2, 4, 8, 16 …, not 7"),
        (
            {**SMALL, "stem": "conv", "patch_size": 16, "width": 12},
            "needs a width that is a multiple of 8, not 12",
        ),
        ({**SMALL, "width": 10, "heads": 2}, "multiple of 4 .*sin-cos"),
        ({**SMALL, "pool": "avg"}, "pool = 'avg': should be token, norm_then_mean or mean"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(ModelConfig, settings, "test")


def test_a_width_of_two_heads_needs_no_multiple_of_four_without_sin_cos() -> None:
    settings = {**SMALL, "width": 10, "heads": 2, "positions": "learned"}
    model = build_backbone(ModelConfig.model_validate(settings), 32, False)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_every_setting_of_the_backbone_gives_a_run_of_its_own() -> None:
    changes = [
        "stem=conv",
        "patch_norm=batch",
        "patch_norm=weight",
        "positions=learned",
        "positions=none",
        "pool=mean",
        "pool=norm_then_mean",
        "mlp_norm=batch",
        "qk_norm=true",
    ]
    ids = {run_id(small_config(f"model.{change}")) for change in changes}
    assert len(ids | {run_id(small_config())}) == len(changes) + 1
