"""MoCo v3 (Chen, Xie, He 2021): momentum encoder, contrastive loss, optional queue of v1 and v2.

Shapes: B images of this process, N of all processes, D features, C output dimensions, Q keys of
the queue.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import MethodConfig
from stabkit.monitor.ranks import rank
from stabkit.train.methods.heads import Online, Output, Twin, against_chance
from stabkit.train.parallel.reduce import gather


class MoCo(nn.Module):
    """Online network and its momentum twin. The twin has no predictor and never a gradient."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.online = Online(backbone, width, config, norm="batch", predictor=config.predictor)
        self.target = Twin(self.online)
        self.temperature = config.temperature
        self.scale_loss = config.scale_loss
        self.queue = KeyQueue(config.queue, config.out) if config.queue else None

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> Output:
        """Return the loss of both directions.

        The twin moves after the queries and before the keys, as in the authors' code.
        """
        feature1, projected1, query1 = self.online(view1)
        _, _, query2 = self.online(view2)
        self.target.follow(self.online, momentum)
        key1, key2 = self.target(view1), self.target(view2)
        loss = self._direction(query1, key2) + self._direction(query2, key1)
        if self.queue is not None:
            # After the loss: a key must not meet its own query as a negative.
            self.queue.add(torch.cat([gather(key1), gather(key2)]))
        return Output(loss, feature1.detach(), projected1.detach())

    def _direction(self, query: Tensor, key: Tensor) -> Tensor:
        return info_nce(query, key, self.temperature, self.scale_loss, self.queue)

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """Return the mean cross-entropy of one direction, for the loss of the step just done."""
        # The loss is a sum of two directions, each times 2τ with `scale_loss`.
        nats = loss / (4 * self.temperature) if self.scale_loss else loss / 2
        return against_chance(nats, self._chance(batch))

    def _chance(self, batch: int) -> Tensor | float:
        if self.queue is None:
            return chance_nats(batch)
        # The step just done added its keys after its loss, so subtract them again.
        before = (self.queue.added - 2 * batch).clamp(max=len(self.queue.keys))
        return (before + batch).log()


class KeyQueue(nn.Module):
    """First-in-first-out queue of past keys, all of them negatives (He et al. 2020, MoCo v1).

    The keys of both views enter, as in the authors' symmetric variant. The queue starts empty and
    fills up. Its position is a tensor, so the host waits for the device in neither method.
    """

    keys: Tensor
    added: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))  # in total

    def similarity(self, query_BC: Tensor) -> Tensor:
        """Return the cosines [B, Q] with unit queries; minus infinity where there is no key yet."""
        place = torch.arange(len(self.keys), device=self.keys.device)
        # Copy, since `add` overwrites the queue before backward reads it.
        cosine = query_BC @ self.keys.to(query_BC.dtype, copy=True).T
        return cosine.masked_fill(place >= self.added, float("-inf"))

    @torch.no_grad()
    def add(self, key_MC: Tensor) -> None:
        """Replace the oldest keys by `key_MC`; if these exceed the queue, keep the last of them."""
        size = len(self.keys)
        skip = max(0, len(key_MC) - size)
        place = torch.arange(skip, len(key_MC), device=self.keys.device)
        place = (place + self.added) % size
        self.keys[place] = F.normalize(key_MC[skip:], dim=1).to(self.keys.dtype)
        self.added += len(key_MC)


def info_nce(
    query_BC: Tensor,
    key_BC: Tensor,
    temperature: float,
    scale_loss: bool = True,
    queue: KeyQueue | None = None,
) -> Tensor:
    """Return the cross-entropy of each query's own key among the keys of all processes.

    This is Algorithm 1: with `scale_loss` the result is multiplied by 2τ, which makes the gradient
    less sensitive to τ. The keys of a `queue` are further negatives. Keys get no gradient.
    """
    query = F.normalize(query_BC, dim=1)
    key_NC = gather(F.normalize(key_BC, dim=1))
    cosine_BN = query @ key_NC.T
    if queue is not None:
        cosine_BN = torch.cat([cosine_BN, queue.similarity(query)], dim=1)
    # Keys are gathered in order of rank: the own key of query i stands at rank·B + i.
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    entropy = F.cross_entropy(cosine_BN / temperature, own)
    return 2 * temperature * entropy if scale_loss else entropy


def chance_nats(num_keys: int) -> float:
    """Return the cross-entropy of a network that cannot tell `num_keys` keys apart: ln N."""
    return math.log(num_keys)
