"""MoCo v3 (Chen, Xie, He 2021): heads, momentum encoder, loss.

Shapes: B images of this process, N of all processes, D features, C output dimensions.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import MethodConfig
from stabkit.train.distributed import gather, rank


class Online(nn.Module):
    """What the optimizer trains: backbone, projector, predictor."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(width, config.hidden, config.out, layers=3)
        self.predictor = mlp(config.out, config.hidden, config.out, layers=2)


class MoCo(nn.Module):
    """Online network and its momentum twin. The twin has no predictor and never a gradient."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.online = Online(backbone, width, config)
        self.target = nn.ModuleDict(
            {name: copy.deepcopy(getattr(self.online, name)) for name in ("backbone", "projector")}
        ).requires_grad_(False)
        self.temperature = config.temperature

    def forward(self, view1: Tensor, view2: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        """Loss (a scalar), and the backbone's features of the first view, [B, D], detached.

        The momentum encoder moves after the queries and before the keys, as in the authors' code.
        """
        feature1, query1 = self._query(view1)
        _, query2 = self._query(view2)
        self.move_target(momentum)
        key1, key2 = self._key(view1), self._key(view2)
        loss = info_nce(query1, key2, self.temperature) + info_nce(query2, key1, self.temperature)
        return loss, feature1.detach()

    def _query(self, view: Tensor) -> tuple[Tensor, Tensor]:
        online = self.online
        feature = online.backbone(view)
        return feature, online.predictor(online.projector(feature))

    @torch.no_grad()
    def _key(self, view: Tensor) -> Tensor:
        key: Tensor = self.target["projector"](self.target["backbone"](view))
        return key

    @torch.no_grad()
    def move_target(self, momentum: float) -> None:
        """target = momentum·target + (1-momentum)·online; parameters only, never BN's buffers.

        As an interpolation, which leaves equal (frozen) tensors equal to the last bit; the weighted
        sum would let them drift by rounding.
        """
        slow: list[Tensor] = list(self.target.parameters())
        fast: list[Tensor] = [
            *self.online.backbone.parameters(),
            *self.online.projector.parameters(),
        ]
        torch._foreach_lerp_(slow, fast, 1 - momentum)


def mlp(dim: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Linear layers without bias, BN and ReLU between; the last BN has no scale and no shift."""
    modules: list[nn.Module] = []
    for width in [hidden] * (layers - 1):
        modules += [nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        dim = width
    modules += [nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out, affine=False)]
    return nn.Sequential(*modules)


def info_nce(query_BC: Tensor, key_BC: Tensor, temperature: float) -> Tensor:
    """2τ · cross-entropy of each query's own key among the keys of all processes (Algorithm 1)."""
    query = F.normalize(query_BC, dim=1)
    key_NC = gather(F.normalize(key_BC, dim=1))
    logits_BN = query @ key_NC.T / temperature
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    return 2 * temperature * F.cross_entropy(logits_BN, own)


def loss_nats(loss: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy behind the two-direction loss, in nats."""
    return loss / (4 * temperature)


def chance_nats(num_keys: int) -> float:
    """Cross-entropy of a network that cannot tell `num_keys` keys apart: ln N."""
    return math.log(num_keys)
