import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stabkit.config import ModelConfig
from stabkit.train.models.vit import PlainViT
from stabkit.train.models.vit_config import build_vit

SMALL = {"patch_size": 8, "width": 24, "depth": 2, "heads": 3}
POOLS: list[dict[str, object]] = [{"pool": "norm_then_mean"}, {"pool": "mean"}]
VARIANTS: list[dict[str, object]] = [
    {"positions": "learned"},
    {"positions": "none"},
    {"mlp_norm": "batch"},
    {"qk_norm": True},
    {"patch_norm": "batch"},
    {"patch_norm": "weight"},
    {"freeze_patch_embed": True},
]


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_vit(ModelConfig.model_validate(SMALL | changes), 32, fused_attention=False)


def test_positions_follow_the_formula_and_never_train() -> None:
    """Compute [sin | cos] of row, then column, frequencies 10000^(-i/(d/4)); class token: 0."""
    vit = small()
    positions = vit.pos_embed[0]
    assert not vit.pos_embed.requires_grad
    assert positions[0].abs().max() == 0
    quarter = SMALL["width"] // 4
    for token in range(16):
        row, column = divmod(token, 4)
        expected = []
        for place in (row, column):
            angles = [place * 10_000 ** (-i / quarter) for i in range(quarter)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(positions[1 + token], torch.tensor(expected))


def test_start_has_the_bounds_of_the_paper_code() -> None:
    vit = small()
    d = SMALL["width"]
    bounds = {
        "patch_embed.proj.weight": math.sqrt(6 / (3 * 8 * 8 + d)),
        "blocks.0.attn.qkv.weight": math.sqrt(6 / (d + d)),
        "blocks.1.attn.proj.weight": math.sqrt(6 / (d + d)),
        "blocks.1.mlp.fc1.weight": math.sqrt(6 / (d + 4 * d)),
    }
    named = dict(vit.named_parameters())
    for name, bound in bounds.items():
        largest = float(named[name].detach().abs().max())
        assert 0.97 * bound < largest <= bound, name  # uniform: hundreds of draws reach the bound
    for name, p in named.items():
        if name.endswith("bias"):
            assert p.abs().max() == 0, name
    assert float(vit.cls_token.detach().abs().max()) < 1e-5


def test_output_is_the_class_token_after_the_last_norm() -> None:
    vit = small().eval()
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.forward_features(image)
        torch.testing.assert_close(vit(image), tokens[:, 0])
        patches = vit.patch_embed(image)
        placed = torch.cat([vit.cls_token.expand(3, 1, -1), patches], 1) + vit.pos_embed
        torch.testing.assert_close(vit.norm(vit.blocks(placed)), tokens)
    assert vit.norm.eps == 1e-6


def test_freezing_takes_the_patch_projection_out_of_training() -> None:
    vit = small(freeze_patch_embed=True)
    frozen = [name for name, p in vit.named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]


@pytest.mark.lengthy
def test_timm_names_build_and_others_are_refused() -> None:
    vit = build_vit(ModelConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2), 32, True)
    assert (vit.num_features, len(vit.blocks), vit.patch_embed.num_patches) == (192, 2, 64)
    deit = build_vit(ModelConfig(name="deit3_small_patch16_224", depth=1), 32, True)
    assert deit(torch.zeros(2, 3, 32, 32)).shape == (2, 384)  # positions without a class token
    with pytest.raises(ValueError, match="is not a timm model; near: vit_tiny_patch16"):
        build_vit(ModelConfig(name="vit_tiny_patch17_224"), 32, True)
    with pytest.raises(ValueError, match=r"not a plain ViT|not a timm ViT"):
        build_vit(ModelConfig(name="mobilenetv3_small_100"), 32, True)
    with pytest.raises(ValueError, match=r"cannot be built in this shape: dim should be divisible"):
        build_vit(ModelConfig(name="vit_tiny_patch16_224", heads=5, depth=1), 32, True)
    with pytest.raises(ValueError, match=r"image_size 40 is not a multiple of .* patch size 16"):
        build_vit(ModelConfig(name="vit_tiny_patch16_224", depth=1), 40, True)
    with pytest.raises(ValueError, match="not a timm ViT"):
        build_vit(ModelConfig(name="deit_tiny_distilled_patch16_224", depth=1), 32, True)
    parallel = ModelConfig(name="vit_small_patch16_18x2_224", depth=1, mlp_norm="batch")
    with pytest.raises(ValueError, match=r"mlp_norm 'batch': .* has no MLP norm"):
        build_vit(parallel, 32, True)
    with pytest.raises(ValueError, match="not a plain ViT"):
        build_vit(ModelConfig(name="vit_tiny_r_s16_p8_224"), 32, True)


def test_vit_s_of_the_paper_has_twelve_heads_of_32() -> None:
    twelve = build_vit(ModelConfig(name="vit_small_patch16_224", heads=12, depth=1), 32, True)
    assert (twelve.blocks[0].attn.num_heads, twelve.blocks[0].attn.head_dim) == (12, 32)
    six = build_vit(ModelConfig(name="vit_small_patch16_224", depth=1), 32, True)
    assert six.blocks[0].attn.num_heads == 6, "timm's own"


@pytest.mark.parametrize("patch", [4, 7, 8, 14, 16])
def test_every_patch_size_of_the_paper_builds_on_a_timm_shape(patch: int) -> None:
    vit = build_vit(ModelConfig(name="vit_tiny_patch16_224", patch_size=patch, depth=1), 112, True)
    assert vit.pos_embed.shape == (1, 1 + (112 // patch) ** 2, 192)
    assert vit(torch.randn(2, 3, 112, 112)).shape == (2, 192)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_no_variant_moves_a_draw_of_the_others(changes: dict[str, object]) -> None:
    """A seed starts all arms of an ablation at the same blocks, unless one has no class token."""
    plain = dict(small().named_parameters())
    for name, p in small(**changes).named_parameters():
        if name in plain and p.ndim > 1 and name != "pos_embed":
            assert p.equal(plain[name]), name


@pytest.mark.parametrize("changes", [*VARIANTS, *POOLS, {"stem": "conv"}], ids=str)
def test_every_variant_starts_as_moco_v3_does(changes: dict[str, object]) -> None:
    named = dict(small(**changes).named_parameters())
    d = SMALL["width"]
    bounds = {"attn.qkv": 2 * d, "attn.proj": 2 * d, "mlp.fc1": 5 * d, "mlp.fc2": 5 * d}
    for block in range(2):
        for layer, fans in bounds.items():
            name = f"blocks.{block}.{layer}"
            largest, bound = (
                float(named[f"{name}.weight"].detach().abs().max()),
                math.sqrt(6 / fans),
            )
            assert 0.97 * bound < largest <= bound, name
            assert named[f"{name}.bias"].abs().max() == 0, name
    if "cls_token" in named:
        assert 0 < float(named["cls_token"].detach().abs().max()) < 1e-5


def test_learned_positions_start_small_and_train() -> None:
    vit = small(positions="learned")
    assert vit.pos_embed.requires_grad
    assert vit.pos_embed.shape == (1, 17, 24)
    # The standard error of a standard deviation of 408 draws is 3.5 % of it; four are allowed.
    assert float(vit.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.14)


def permuted_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    order = torch.randperm(images.shape[-1] ** 2 // patch**2)
    columns = F.unfold(images, patch, stride=patch)
    return F.fold(columns[:, :, order], images.shape[-2:], patch, stride=patch)


@pytest.mark.parametrize("pool", ["token", "norm_then_mean", "mean"])
def test_without_positions_the_order_of_the_patches_is_unknown(pool: str) -> None:
    torch.manual_seed(1)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    shuffled = permuted_patches(images, 8)
    moved = {}
    for positions in ("none", "learned", "sincos"):
        vit = small(positions=positions, pool=pool).double().eval()
        with torch.no_grad():
            moved[positions] = float((vit(images) - vit(shuffled)).abs().max())
    assert moved["none"] < 1e-12, "float64 rounding of sums in another order"
    assert moved["learned"] > 1e-5
    assert moved["sincos"] > 1e-3


@pytest.mark.parametrize("pool", ["norm_then_mean", "mean"])
def test_pools_are_means_over_patches_with_and_without_the_norm_before(pool: str) -> None:
    vit = small(pool=pool).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.blocks(vit.patch_embed(images) + vit.pos_embed)
        assert tokens.shape == (3, 16, 24)
        if pool == "norm_then_mean":
            centered = tokens - tokens.mean(-1, keepdim=True)
            tokens = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(vit(images), tokens.mean(1))
    names = {name for name, _ in vit.named_parameters()}
    assert "cls_token" not in names
    assert ("norm.weight" in names) == (pool == "norm_then_mean")


def test_vit_bn_replaces_the_norms_of_the_mlps_and_no_other() -> None:
    vit = small(mlp_norm="batch")
    layer_norms = {n for n, m in vit.named_modules() if isinstance(m, nn.LayerNorm)}
    batch_norms = {n for n, m in vit.named_modules() if isinstance(m, nn.BatchNorm1d)}
    assert layer_norms == {"blocks.0.norm1", "blocks.1.norm1", "norm"}
    assert batch_norms == {"blocks.0.norm2.bn", "blocks.1.norm2.bn"}
    block = vit.blocks[0].double()
    before = 3 + 2 * torch.randn(4, 5, SMALL["width"], dtype=torch.float64)
    x = before + block.attn(block.norm1(before))
    mean, var = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    torch.testing.assert_close(block(before), x + block.mlp((x - mean) / (var + 1e-5).sqrt()))


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries_and_keys() -> None:
    """Doubled query and key weights change nothing; without the norm they do.

    Without class token: it starts so small that the 1e-6 under the roots of the norms decides.
    """
    torch.manual_seed(1)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    moved = {}
    for qk_norm in (True, False):
        vit = small(qk_norm=qk_norm, pool="mean").double().eval()
        with torch.no_grad():
            before = vit(images)
            for block in vit.blocks:
                block.attn.qkv.weight[: 2 * SMALL["width"]] *= 2
            moved[qk_norm] = float((vit(images) - before).abs().max())
    # The change is small but not 0: the norm adds 1e-6 to variances of about 1, some much smaller.
    assert moved[True] < 1e-3
    assert moved[False] > 1e-2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("pool", ["token", "norm_then_mean", "mean"])
def test_the_plain_vit_equals_timms_to_the_bit(pool: str, qk_norm: bool, fused: bool) -> None:
    """Compare start, global generator, features and gradients; weights load either way."""
    has_token, has_norm = pool == "token", pool != "mean"
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    options = shape | {"class_token": has_token, "final_norm": has_norm, "qk_norm": qk_norm}
    torch.manual_seed(3)
    ours = PlainViT(**options)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    theirs = VisionTransformer(
        **options,
        global_pool="token" if has_token else "avg",
        num_classes=0,
        weight_init="moco",
        fc_norm=False,
    )
    assert torch.get_rng_state().equal(after)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for block, other in zip(ours.blocks, theirs.blocks, strict=True):
        block.attn.fused_attn = other.attn.fused_attn = fused
    images = torch.randn(5, 3, 32, 32)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    with torch.no_grad():
        assert ours(images).equal(theirs(images))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.equal(q), name
        assert p.grad.equal(q.grad), name


def test_positions_equal_timms_to_the_bit() -> None:
    for patch, width in ((8, 24), (4, 60), (16, 192)):
        vit = small(patch_size=patch, width=width)
        theirs = build_sincos2d_pos_embed(vit.patch_embed.grid_size, width, interleave_sin_cos=True)
        assert vit.pos_embed[0, 1:].equal(theirs)
