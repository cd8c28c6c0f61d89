"""What the frameworks share: heads on the backbone, and the momentum twin.

Shapes: B images of this process, N of all processes, D features, C output dimensions.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stabkit.config import HeadNorm, MethodConfig


class Output(NamedTuple):
    """What a framework makes of a step; all but the loss is of the first view, and detached."""

    loss: Tensor  # a scalar
    feature: Tensor  # [B, D], of the backbone
    embedding: Tensor  # [B, C], where the loss looks for spread: a projection, or class scores


class Online(nn.Module):
    """What the optimizer trains: backbone, projector and, where there is one, predictor."""

    def __init__(
        self, backbone: nn.Module, width: int, config: MethodConfig, norm: HeadNorm, predictor: bool
    ) -> None:
        super().__init__()
        norm = config.head_norm or norm
        hidden, out = config.hidden, config.out
        self.backbone = backbone
        self.projector = mlp(width, hidden, out, config.projector_layers, norm)
        self.predictor: nn.Module = nn.Identity()
        if predictor:
            self.predictor = mlp(out, hidden, out, 2, config.predictor_norm or norm)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, D], their projection and its prediction [B, C]."""
        feature = self.backbone(view)
        projected = self.projector(feature)
        return feature, projected, self.predictor(projected)


class Twin(nn.Module):
    """A slow copy of backbone and projector: no predictor, and never a gradient."""

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(online.backbone)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        key: Tensor = self.projector(self.backbone(view))
        return key

    @torch.no_grad()
    def follow(self, online: Online, momentum: float) -> None:
        """twin = momentum·twin + (1-momentum)·online; parameters only, never BN's buffers.

        As an interpolation, which leaves equal (frozen) tensors equal to the last bit and with
        momentum 0 copies exactly; the weighted sum would let frozen ones drift by rounding.
        """
        slow: list[Tensor] = list(self.parameters())
        fast: list[Tensor] = [*online.backbone.parameters(), *online.projector.parameters()]
        torch._foreach_lerp_(slow, fast, 1 - momentum)


def mlp(dim: int, hidden: int, out: int, layers: int, norm: HeadNorm = "batch") -> nn.Sequential:
    """Linear layers without bias and ReLU between.

    `norm`: BN after every layer, the last without scale and shift (batch); after all but the last
    (hidden); nowhere (none).
    """
    modules: list[nn.Module] = []
    for width in [hidden] * (layers - 1):
        modules.append(nn.Linear(dim, width, bias=False))
        if norm != "none":
            modules.append(nn.BatchNorm1d(width))
        modules.append(nn.ReLU(inplace=True))
        dim = width
    modules.append(nn.Linear(dim, out, bias=False))
    if norm == "batch":
        modules.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*modules)


def against_chance(nats: Tensor, chance: Tensor | float) -> dict[str, Tensor]:
    """Scalars that compare across settings: cross-entropy in nats, and as a share of chance's."""
    return {"loss_nats": nats, "loss_relative": nats / chance}
