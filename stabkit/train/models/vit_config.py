"""Build Vision Transformers as MoCo v3 trains them: fixed positions and its own initialization."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stabkit.config import ModelConfig
from stabkit.train.models.patch_embed import ConvStem, TokenBatchNorm, add_patch_norm
from stabkit.train.models.vit import PlainViT

if TYPE_CHECKING:  # timm takes seconds to import, and only named models need it
    from timm.models.vision_transformer import VisionTransformer

# The paper's three poolings. timm's own mean pooling, a norm after the mean, is not among them.
_POOLS: dict[str, dict[str, bool]] = {
    "token": {"class_token": True, "final_norm": True},
    "norm_then_mean": {"class_token": False, "final_norm": True},
    "mean": {"class_token": False, "final_norm": False},
}


def build_vit(
    config: ModelConfig, image_size: int, fused_attention: bool
) -> "PlainViT | VisionTransformer":
    """Build a ViT from images to the class token after the last norm (MoCo v3 section 4.4), [B, C].

    Attention and MLP weights are Xavier-uniform, with q, k and v as three matrices. The patch
    projection is Xavier-uniform over 3·p²+d. Positions are fixed 2-D sin-cos. ModelConfig says what
    may differ.

    Draws from torch's global generator, the same numbers for all positions, norms and freezing.
    Raises ValueError for a model that cannot be built.
    """
    shape = {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
    }
    options: dict[str, Any] = {k: v for k, v in shape.items() if v is not None}
    options |= {"img_size": image_size} | _POOLS[config.pool]
    if config.qk_norm:
        options["qk_norm"] = True
    if config.stem == "conv":
        options["embed_layer"] = ConvStem
    vit: Any = PlainViT(**options) if config.name == "vit" else _timm_vit(config, options)
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch:
        size = f"data.image_size {image_size}"
        raise ValueError(f"{size} is not a multiple of {config.name!r}'s patch size {patch}")
    _set_positions(vit, config.positions)
    if config.stem == "patch":
        _start_patch_embed(vit)
        add_patch_norm(vit.patch_embed, config)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    if config.mlp_norm == "batch":
        for block in vit.blocks:
            block.norm2 = TokenBatchNorm(vit.embed_dim)
    if config.freeze_patch_embed:
        # Zeroed gradients would not freeze it: weight decay would go on shrinking the layer.
        vit.patch_embed.requires_grad_(False)
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused_attention
    return vit  # type: ignore[no-any-return]


def _timm_vit(config: ModelConfig, options: dict[str, Any]) -> "VisionTransformer":
    """Build timm's model of this name; raise ValueError unless it is a plain ViT."""
    import timm
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    name = config.name
    options |= {"num_classes": 0, "weight_init": "moco", "fc_norm": False, "pos_embed": "learn"}
    options["global_pool"] = "token" if options["class_token"] else "avg"
    if name not in timm.list_models():
        near = timm.list_models(f"{name.split('_patch')[0]}*")[:8]
        raise ValueError(f"model.name {name!r} is not a timm model; near: {', '.join(near)}")
    try:
        model = timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        raise ValueError(f"model.name {name!r}: not a plain ViT ({error})") from None
    except AssertionError as error:
        raise ValueError(f"model.name {name!r} cannot be built in this shape: {error}") from None
    # An exact type: a distilled model is a subclass and has two class tokens.
    if type(model) is not VisionTransformer:
        raise ValueError(f"model.name {name!r}: not a timm ViT")
    if not isinstance(model.patch_embed, PatchEmbed | ConvStem):
        raise ValueError(f"model.name {name!r}: not a plain ViT (it has no patch projection)")
    if config.mlp_norm == "batch":
        for block in model.blocks:
            if not isinstance(block, Block):
                kind = type(block).__name__
                raise ValueError(f"model.mlp_norm 'batch': {name!r} has no MLP norm ({kind})")
    return model


def _set_positions(vit: Any, positions: str) -> None:
    """Set the position embedding; `learned` keeps timm's: normal, std 0.02, with class token."""
    if positions == "sincos":
        _fix_positions(vit)
    elif positions == "none":
        vit.pos_embed = None


def _fix_positions(vit: Any) -> None:
    """Fix 2-D sin-cos positions: a quarter each of [sin | cos] of the row, then of the column.

    The class token has position zero. Frequencies are 10000^(-i/(d/4)). The authors' code names the
    halves the other way round and transposes its grid, which gives the same.
    """
    dim, (rows, columns) = vit.embed_dim, vit.patch_embed.grid_size
    frequencies = 1 / 10_000 ** (torch.arange(dim // 4) / (dim // 4))
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    angles = places[:, :, None] * frequencies
    grid = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    # Some models add the class token after the positions, so it needs no row.
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    positions: Tensor = torch.cat([torch.zeros(prefix, dim), grid])[None]
    vit.pos_embed = nn.Parameter(positions, requires_grad=False)


def _start_patch_embed(vit: Any) -> None:
    """Draw the projection Xavier-uniform, as a matrix from a patch (3·p² values) to d channels."""
    proj = vit.patch_embed.proj
    fan_in = proj.in_channels * math.prod(proj.kernel_size)
    bound = math.sqrt(6 / (fan_in + proj.out_channels))
    nn.init.uniform_(proj.weight, -bound, bound)
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)
