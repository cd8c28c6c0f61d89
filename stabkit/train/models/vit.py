"""The plain Vision Transformer: timm's model for the options used here, without importing timm.

A model of our own keeps its bits when timm changes, and it starts faster: importing timm takes
longer than everything else before a first step. Parameter names, the order of draws and every
operation are those of `timm.models.vision_transformer`, so weights go either way and a run has the
same bits; a test compares both. Shapes: B images, N tokens, C channels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of every LN


class PatchEmbed(nn.Module):
    """Non-overlapping patches of [B, 3, S, S], each projected: [B, N, C]."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.norm: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens [B, N, C]; raise ValueError for images of another size."""
        if images.shape[2:] != self.img_size:
            raise ValueError(f"images of {tuple(images.shape[2:])} pixels, not {self.img_size}")
        normed: Tensor = self.norm(self.proj(images).flatten(2).transpose(1, 2))
        return normed


class Attention(nn.Module):
    """Multi-head self-attention, with an optional LN of queries and keys (`qk_norm`)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(self.head_dim, EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens [B, N, C] by attention."""
        B, N, C = x.shape
        # [3, B, heads, N, C / heads]: queries, keys and values first, then one matrix a head.
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        mixed: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with GELU between; the hidden layer is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of [B, N, C] by itself."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each with an LN before it and a residual connection around it."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2: nn.Module = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, N, C]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PlainViT(nn.Module):
    """A network from [B, 3, S, S] to [B, C]: the class token, or the mean of all patch tokens.

    Either is taken after the last norm, if there is one. Options have the names of timm's
    VisionTransformer. Weights are drawn as by timm's `weight_init="moco"`.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        class_token: bool = True,
        final_norm: bool = True,
        qk_norm: bool = False,
        embed_layer: Callable[[int, int, int, int], nn.Module] = PatchEmbed,
    ) -> None:
        super().__init__()
        self.num_features = self.embed_dim = embed_dim
        self.no_embed_class, self.num_prefix_tokens = False, int(class_token)
        self.patch_embed = embed_layer(img_size, patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        tokens = (img_size // patch_size) ** 2 + int(class_token)
        self.pos_embed: nn.Parameter | None = nn.Parameter(torch.empty(1, tokens, embed_dim))
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, qk_norm) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, EPS) if final_norm else nn.Identity()
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        assert self.pos_embed is not None
        # Normal with std 0.02, by the inverse error function as in timm: the draws of PyTorch's
        # trunc_normal_ have changed between versions.
        self.pos_embed.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Xavier-uniform. The qkv layer holds three matrices, each with its own fan-out.
                if name.endswith("qkv"):
                    bound = math.sqrt(6 / (module.out_features // 3 + module.in_features))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all tokens [B, N, C] after the last norm."""
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        tokens: Tensor = self.norm(self.blocks(x))
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, C]."""
        x = self.forward_features(images)
        return x[:, 0] if self.cls_token is not None else x.mean(dim=1)
