import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.config import ModelConfig
from stabkit.monitor.layers import group_layers
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.models.patch_embed import ConvStem, TokenBatchNorm
from stabkit.train.models.vit_config import build_vit
from stabkit.train.state import build_state
from tests.conftest import small_config
from tests.train.small import kinds

SMALL = {"patch_size": 8, "width": 24, "depth": 1, "heads": 3}
CPU = torch.device("cpu")


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_vit(ModelConfig.model_validate(SMALL | changes), 32, fused_attention=False)


def test_token_bn_normalizes_each_channel_over_all_tokens_of_all_images() -> None:
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(4, 5, 6, dtype=torch.float64)
    norm = TokenBatchNorm(6).double()
    mean, var = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-5).sqrt())
    # Evaluation uses a tenth of the way from (0, 1) to the (unbiased) statistics.
    torch.testing.assert_close(norm.bn.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.bn.running_var, 0.9 + 0.1 * x.var((0, 1)))


@pytest.mark.parametrize(
    ("patch", "widths"), [(2, [32]), (4, [16, 32]), (8, [8, 16, 32]), (16, [4, 8, 16, 32])]
)
def test_conv_stem_ends_on_the_grid_of_the_patches(patch: int, widths: list[int]) -> None:
    shape = SMALL | {"patch_size": patch, "width": 32, "heads": 4}
    vit = build_vit(ModelConfig.model_validate(shape | {"stem": "conv"}), 64, False)
    plain = build_vit(ModelConfig.model_validate(shape), 64, False)
    stem = vit.patch_embed
    layer = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(stem.proj) == [*layer * len(widths), "Conv2d"]
    convs = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [*widths, 32]
    assert [(*c.kernel_size, *c.stride) for c in convs] == [(3, 3, 2, 2)] * len(widths) + [
        (1, 1, 1, 1)
    ]
    assert [c.bias is not None for c in convs] == [False] * len(widths) + [True]
    assert stem.grid_size == plain.patch_embed.grid_size == (64 // patch, 64 // patch)
    images = torch.randn(2, 3, 64, 64)
    assert stem(images).shape == plain.patch_embed(images).shape == (2, (64 // patch) ** 2, 32)
    assert vit(images).shape == (2, 32)
    assert vit.pos_embed.equal(plain.pos_embed)


def test_conv_stem_orders_its_tokens_by_rows() -> None:
    """After three convolutions token i sees pixels 8i-7 to 8i+7; no other token sees pixel 8i."""
    torch.manual_seed(0)
    stem = ConvStem(img_size=32, patch_size=8, in_chans=3, embed_dim=16).eval()
    blank = torch.zeros(1, 3, 32, 32)
    for row, column in itertools.product(range(4), repeat=2):
        image = blank.clone()
        image[:, :, 8 * row, 8 * column] = torch.tensor([1.0, -2.0, 3.0])
        changed = (stem(image) != stem(blank)).any(dim=-1)[0]
        assert changed.nonzero().flatten().tolist() == [4 * row + column]


def test_a_conv_stem_is_one_layer_and_comes_first() -> None:
    vit = small(stem="conv")
    layers, index = group_layers([name for name, _ in vit.named_parameters()])
    assert layers[:3] == ["patch_embed", "cls_token", "pos_embed"]
    assert index.count(0) == 3 * 3 + 2, "three of conv, BN scale, BN shift; one conv with bias"


def test_weight_norm_starts_at_the_plain_projection() -> None:
    images = torch.randn(2, 3, 32, 32)
    plain, normed = small(), small(patch_norm="weight")
    # w·|w|/|w| in float32 rounds each factor once.
    torch.testing.assert_close(
        normed.patch_embed.proj.weight, plain.patch_embed.proj.weight, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(normed(images), plain(images), rtol=1e-5, atol=1e-5)


def test_weight_norm_separates_the_gain_of_a_filter_from_its_direction() -> None:
    proj = small(patch_norm="weight").patch_embed.proj
    before = proj.weight.detach().clone()
    with torch.no_grad():
        proj.parametrizations.weight.original1.mul_(7)
    torch.testing.assert_close(proj.weight, before)
    with torch.no_grad():
        proj.parametrizations.weight.original0[3].mul_(2)
    torch.testing.assert_close(proj.weight[3], 2 * before[3])
    torch.testing.assert_close(proj.weight[4:], before[4:])


def test_bn_comes_right_after_the_projection() -> None:
    plain, normed = small(), small(patch_norm="batch")
    images = torch.randn(4, 3, 32, 32)
    tokens = plain.patch_embed(images)
    expected = (tokens - tokens.mean((0, 1))) / (tokens.var((0, 1), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(normed.patch_embed(images), expected, rtol=1e-4, atol=1e-5)


def patch_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "patch_embed" in name}


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("patch_norm", "optimizer"),
    [(norm, "adamw") for norm in ("none", "batch", "weight")]
    + [("none", name) for name in ("stable_adamw", "sgd", "lars", "lamb")],
)
@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_patch_projection_never_moves_under_any_norm_and_optimizer(
    tmp_path: Path, patch_norm: str, optimizer: str, freeze: bool
) -> None:
    """Check online and momentum network; only the statistics of a BN move, with the data."""
    config = small_config(
        f"model.freeze_patch_embed={freeze}".lower(),
        f"model.patch_norm={patch_norm}",
        f"optim.name={optimizer}",
        "optim.lr=1.0",
        "optim.warmup_steps=0",
        "train.steps=3",  # the momentum network moves from the second step on
        "knn.every=3",
    )
    start = patch_tensors(build_state(config, 64, CPU).model.state_dict())
    loop.train(config, RunDir(tmp_path))
    saved = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    trained = patch_tensors(saved)
    assert trained.keys() == start.keys()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in trained.items():
        kept = freeze and not name.endswith(statistics)
        assert value.equal(start[name]) == kept, name
    ends = {name.rsplit(".", 1)[-1] for name in trained}
    assert ends >= {"none": {"weight"}, "weight": {"original0", "original1"}}.get(
        patch_norm, {"running_var"}
    )
    signals = stabkit.open_run(tmp_path).signals()
    patch = signals[signals["layer"] == "patch_embed"]
    assert patch["grad_norm"].isna().all() == freeze
