"""The parts that the frameworks share: heads on the backbone, and the momentum twin.

Shapes: B images of this process, N of all processes, D features, C output dimensions.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stabkit.config import HeadNorm, MethodConfig


class Output(NamedTuple):
    """The result of one step; feature and embedding belong to the first view and are detached."""

    loss: Tensor  # a scalar
    feature: Tensor  # [B, D], from the backbone
    embedding: Tensor  # [B, C], the output that the loss spreads: a projection, or class scores


class Online(nn.Module):
    """The network that the optimizer trains: backbone, projector and, optionally, predictor."""

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
        """Return features [B, D], their projection [B, C] and its prediction [B, C].

        Without a predictor the prediction is the projection itself.
        """
        feature = self.backbone(view)
        projected = self.projector(feature)
        return feature, projected, self.predictor(projected)


class Twin(nn.Module):
    """The momentum encoder: a slow copy of backbone and projector, without predictor or gradient.

    It stays in training mode, as in the authors' code: its BN uses the statistics of its own batch.
    """

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(online.backbone)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """Return the projection [B, C] of a view, without a gradient."""
        key: Tensor = self.projector(self.backbone(view))
        return key

    @torch.no_grad()
    def follow(self, online: Online, momentum: float) -> None:
        """Set twin = momentum·twin + (1-momentum)·online, for parameters but not BN's buffers.

        It is computed as the interpolation twin + (1-momentum)·(online - twin). This leaves equal
        (frozen) tensors equal to the last bit, and with momentum 0 it copies exactly. The weighted
        sum would let frozen tensors drift by rounding.
        """
        slow: list[Tensor] = list(self.parameters())
        fast: list[Tensor] = [*online.backbone.parameters(), *online.projector.parameters()]
        torch._foreach_lerp_(slow, fast, 1 - momentum)


def mlp(dim: int, hidden: int, out: int, layers: int, norm: HeadNorm = "batch") -> nn.Sequential:
    """Build linear layers without bias, with ReLU between them.

    `norm` says where BN stands: `batch` after every layer, the last one without scale and shift;
    `hidden` after all but the last; `none` nowhere.
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
    """Return the cross-entropy in nats and relative to chance, which compare across settings."""
    return {"loss_nats": nats, "loss_relative": nats / chance}
