import math

import pytest
import torch
from torch import nn

from stabkit.config import ModelConfig
from stabkit.train.vit import build_vit

SMALL = {"patch_size": 8, "width": 24, "depth": 2, "heads": 3}


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_vit(ModelConfig.model_validate(SMALL | changes), 32, fused_attention=False)


def test_positions_follow_the_formula_and_never_train() -> None:
    """[sin | cos] of the row, then of the column, frequencies 10000^(-i/(d/4)); class token: 0."""
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
        torch.testing.assert_close(
            vit.norm(vit.blocks(vit.pos_drop(vit._pos_embed(vit.patch_embed(image))))), tokens
        )
    assert vit.norm.eps == 1e-6


def test_freezing_takes_the_patch_projection_out_of_training() -> None:
    vit = small(freeze_patch_embed=True)
    frozen = [name for name, p in vit.named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]


def test_timm_names_build_and_others_are_refused() -> None:
    vit = build_vit(ModelConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2), 32, True)
    assert (vit.num_features, len(vit.blocks), vit.patch_embed.num_patches) == (192, 2, 64)
    deit = build_vit(ModelConfig(name="deit3_small_patch16_224", depth=1), 32, True)
    assert deit(torch.zeros(2, 3, 32, 32)).shape == (2, 384)  # positions without a class token
    with pytest.raises(ValueError, match="is not a timm model; near: vit_tiny_patch16"):
        build_vit(ModelConfig(name="vit_tiny_patch17_224"), 32, True)
    with pytest.raises(ValueError, match=r"not a plain ViT|not a timm ViT"):
        build_vit(ModelConfig(name="resnet18"), 32, True)
