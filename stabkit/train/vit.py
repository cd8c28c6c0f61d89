"""Vision Transformers as MoCo v3 trains them: timm's, with fixed positions and its own start."""

import math
from typing import Any

import timm
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stabkit.config import ModelConfig


def build_vit(config: ModelConfig, image_size: int, fused_attention: bool) -> VisionTransformer:
    """A ViT whose output is the class token after the last norm (MoCo v3 section 4.4).

    Positions are fixed 2-D sin-cos, attention and MLP weights Xavier-uniform with q, k and v as
    three matrices, the patch projection Xavier-uniform over 3·p²+d. Draws from torch's global
    generator. Raises ValueError for a name that is no timm ViT.
    """
    shape = {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
    }
    options: dict[str, Any] = {k: v for k, v in shape.items() if v is not None}
    options |= {"img_size": image_size, "num_classes": 0, "weight_init": "moco"}
    vit = VisionTransformer(**options) if config.name == "vit" else _timm_vit(config.name, options)
    _fix_positions(vit)
    _start_patch_embed(vit)
    if config.freeze_patch_embed:
        # not by zeroed gradients: weight decay would go on shrinking the layer
        vit.patch_embed.requires_grad_(False)
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused_attention  # type: ignore[assignment]
    return vit


def _timm_vit(name: str, options: dict[str, Any]) -> VisionTransformer:
    if name not in timm.list_models():
        near = timm.list_models(f"{name.split('_patch')[0]}*")[:8]
        raise ValueError(f"model.name {name!r} is not a timm model; near: {', '.join(near)}")
    try:
        model = timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        raise ValueError(f"model.name {name!r}: not a plain ViT ({error})") from None
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise ValueError(f"model.name {name!r}: not a timm ViT with a class token")
    return model


def _fix_positions(vit: VisionTransformer) -> None:
    """Zero for the class token; else a quarter each of [sin | cos] of the row, then the column.

    Frequencies 10000^(-i/(d/4)). The authors' code names the halves the other way round and
    transposes its grid, which comes to the same.
    """
    dim = vit.embed_dim
    grid = build_sincos2d_pos_embed(vit.patch_embed.grid_size, dim, interleave_sin_cos=True)
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens  # some add the token afterwards
    positions: Tensor = torch.cat([torch.zeros(prefix, dim), grid])[None]
    vit.pos_embed = nn.Parameter(positions, requires_grad=False)


def _start_patch_embed(vit: VisionTransformer) -> None:
    proj = vit.patch_embed.proj
    fan_in = proj.in_channels * math.prod(proj.kernel_size)
    bound = math.sqrt(6 / (fan_in + proj.out_channels))
    nn.init.uniform_(proj.weight, -bound, bound)
    nn.init.zeros_(proj.bias)
    assert vit.cls_token is not None  # asked of every model that is built here
    nn.init.normal_(vit.cls_token, std=1e-6)
