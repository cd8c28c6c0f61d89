"""SimCLR (Chen et al. 2020): tell the other view of an image from all other views of the batch.

Shapes: B images of this process, N of all processes, D features, C output dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import MethodConfig
from stabkit.monitor.ranks import rank
from stabkit.train.methods.heads import Online, Output, against_chance
from stabkit.train.methods.moco import chance_nats
from stabkit.train.parallel.reduce import gather_with_gradient


class SimCLR(nn.Module):
    """One network for both views: no predictor, no twin."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.online = Online(backbone, width, config, norm="batch", predictor=False)
        self.temperature = config.temperature

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> Output:
        """Return the loss; both views pass as one batch of 2B for BN, as in the authors' code."""
        feature, projected, _ = self.online(torch.cat([view1, view2]))
        first, second = projected.chunk(2)
        loss = nt_xent(first, second, self.temperature)
        return Output(loss, feature[: len(view1)].detach(), first.detach())

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """Compare with chance among 2N-1 views: one positive and 2N-2 negatives."""
        return against_chance(loss, chance_nats(2 * batch - 1))


def nt_xent(first_BC: Tensor, second_BC: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each view's positive among the 2N-1 other views (equation 1).

    The result is the mean of all 2B views. The gradient also flows through the views of other
    processes.
    """
    first, second = F.normalize(first_BC, dim=1), F.normalize(second_BC, dim=1)
    all_first, all_second = gather_with_gradient(first), gather_with_gradient(second)
    own = torch.arange(len(first), device=first.device) + rank() * len(first)
    itself = F.one_hot(own, len(all_first)).bool()

    def direction(view: Tensor, same: Tensor, other: Tensor) -> Tensor:
        # A view is not its own negative; its positive stands in `other`, at the place `own`.
        negatives = (view @ same.T).masked_fill(itself, float("-inf"))
        logits = torch.cat([view @ other.T, negatives], dim=1) / temperature
        return F.cross_entropy(logits, own)

    there = direction(first, all_first, all_second)
    back = direction(second, all_second, all_first)
    return (there + back) / 2
