"""The plain Vision Transformer: timm's in what its options here can ask for, without timm.

Importing timm takes longer than everything else before a first step together: it brings
torchvision, the hub's client and PyTorch's compiler. Names of parameters, the order of draws and
every operation are those of `timm.models.vision_transformer`, so that weights go either way and a
run has the same bits; a test holds both side by side. Shapes: B images, N tokens, C channels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of every LN


class PatchEmbed(nn.Module):
    """Non-overlapping patches of [B, 3, S, S], each projected: [B, N, C]."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, bias=bias)
        self.norm: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.img_size:
            raise ValueError(f"images of {tuple(images.shape[2:])} pixels, not {self.img_size}")
        normed: Tensor = self.norm(self.proj(images).flatten(2).transpose(1, 2))
        return normed


class Attention(nn.Module):
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
        B, N, C = x.shape
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
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2: nn.Module = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PlainViT(nn.Module):
    """[B, 3, S, S] to [B, C]: the class token, or the mean of the patches, after the last LN.

    Options as timm's VisionTransformer names them. Starts as timm's `weight_init="moco"`.
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
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        assert self.pos_embed is not None
        # normal, of std 0.02, drawn as timm draws it: PyTorch's own draws have changed since
        self.pos_embed.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith("qkv"):  # Xavier-uniform as well, of three matrices in one
                    bound = math.sqrt(6 / (module.out_features // 3 + module.in_features))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, N, C]: all tokens after the last LN."""
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        tokens: Tensor = self.norm(self.blocks(x))
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        x = self.forward_features(images)
        return x[:, 0] if self.cls_token is not None else x.mean(dim=1)
