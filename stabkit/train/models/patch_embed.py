"""From pixels to tokens: the conv stem, and norms on the patch projection.

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
        # held, not inherited: a conversion to SyncBN keeps working on a plain BN of [B·N, C]
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        normed: Tensor = self.bn(x_BNC.flatten(0, 1)).view_as(x_BNC)
        return normed


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, each with BN and ReLU, then a 1x1 one (Xiao et al. 2021).

    Takes the place of a PatchEmbed, timm's or ours: [B, 3, H, W] to [B, N, C] on the same grid.
    Patches of 16 take four stride-2 convolutions of C/8, C/4, C/2 and C channels; of 8 three
    (C/4 …); and so on. Convolutions begin as PyTorch draws them, as in MoCo v3's code.
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
            conv = nn.Conv2d(
                before, width, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype
            )
            norm = nn.BatchNorm2d(width, device=device, dtype=dtype)
            layers += [conv, norm, nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.Conv2d(before, embed_dim, 1, bias=bias, device=device, dtype=dtype))
        self.proj = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        grid_BCHW: Tensor = self.proj(images)
        return grid_BCHW.flatten(2).transpose(1, 2)


def add_patch_norm(patch_embed: Any, config: ModelConfig) -> None:
    """BN after the projection, or WeightNorm (Salimans & Kingma 2016) of each of its filters.

    WeightNorm begins at the drawn weights: its gains are their norms. Call after the weights are
    drawn, before they are frozen.
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
        weight_norm(patch_embed.proj, dim=0)
