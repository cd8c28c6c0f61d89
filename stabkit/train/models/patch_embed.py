"""Turn pixels into tokens: the conv stem, and norms on the patch projection.

Shapes: B images, N patches, C channels of a token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from stabkit.config import ModelConfig, conv_stem_widths


class TokenBatchNorm(nn.Module):
    """BN of each channel over all tokens of all images: [B, N, C], statistics over B·N."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A member, not a base class: conversion to SyncBN replaces it by one for [B·N, C].
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Normalize [B, N, C] as one batch of B·N tokens."""
        normed: Tensor = self.bn(x_BNC.flatten(0, 1)).view_as(x_BNC)
        return normed


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, each with BN and ReLU, then a 1x1 one (Xiao et al. 2021).

    It replaces a PatchEmbed, timm's or ours: [B, 3, H, W] to [B, N, C] on the same grid. A patch
    size of 16 takes four stride-2 convolutions of C/8, C/4, C/2 and C channels, a patch size of 8
    takes three (from C/4), and so on. Convolutions start as PyTorch draws them, as in MoCo v3's
    code.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dynamic_img_pad:
            raise ValueError("the conv stem does not pad images; use stem: patch")
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        before = in_chans
        for width in conv_stem_widths(patch_size, embed_dim):
            # Each halves the grid; no bias, since the BN after it has a shift.
            conv = nn.Conv2d(
                before, width, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype
            )
            norm = nn.BatchNorm2d(width, device=device, dtype=dtype)
            layers += [conv, norm, nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.Conv2d(before, embed_dim, 1, bias=bias, device=device, dtype=dtype))
        self.proj = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens [B, N, C], row by row of the grid."""
        grid_BCHW: Tensor = self.proj(images)
        return grid_BCHW.flatten(2).transpose(1, 2)


def add_patch_norm(patch_embed: Any, config: ModelConfig) -> None:
    """Add BN after the projection, or WeightNorm (Salimans & Kingma 2016) to each of its filters.

    WeightNorm starts at the drawn weights: its gains are their norms. Call this after the weights
    are drawn and before they are frozen. Raises ValueError if the model already has a norm there.
    """
    if config.patch_norm == "none":
        return
    if not isinstance(patch_embed.norm, nn.Identity):
        raise ValueError(
            f"model.patch_norm {config.patch_norm!r}: {config.name!r} already has a norm there"
        )
    if config.patch_norm == "batch":
        patch_embed.norm = TokenBatchNorm(patch_embed.proj.out_channels)
    else:
        weight_norm(patch_embed.proj, dim=0)  # dimension 0: one gain an output channel
