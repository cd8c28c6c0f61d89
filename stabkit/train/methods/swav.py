"""SwAV (Caron et al. 2020): predict the cluster of one view from the other view.

Sinkhorn-Knopp keeps the clusters equally full.

Shapes: B images of this process, N of all processes, D features, C output dimensions, K prototypes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import MethodConfig
from stabkit.monitor.ranks import rank
from stabkit.train.methods.heads import Online, Output, against_chance
from stabkit.train.parallel.reduce import gather

ITERATIONS = 3  # of Sinkhorn-Knopp; the authors' choice


class Clustered(Online):
    """The network that the optimizer trains: backbone, projector, prototypes (unit rows [K, C])."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__(backbone, width, config, norm="none", predictor=False)
        self.prototypes = nn.Linear(config.out, config.prototypes, bias=False)
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Put the prototypes back on the unit sphere, which an update leaves."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


class SwAV(nn.Module):
    """One network for both views; it also gives their codes, without a gradient."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.online = Clustered(backbone, width, config)
        self.temperature = config.temperature
        self.eps = config.sinkhorn_eps
        self.iterations = ITERATIONS if config.sinkhorn else 0
        self.frozen_steps = config.freeze_prototypes_steps

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> Output:
        """Return the loss of both directions; both views pass as one batch."""
        online, weight = self.online, self.online.prototypes.weight
        if step < self.frozen_steps:
            # No gradient at all: with a gradient of zero, weight decay would shrink the prototypes.
            weight = weight.detach()
        else:
            online.normalize_prototypes()
        feature, projected, _ = online(torch.cat([view1, view2]))
        scores1, scores2 = (F.normalize(projected, dim=1) @ weight.T).chunk(2)
        loss = (self._swapped(scores1, scores2) + self._swapped(scores2, scores1)) / 2
        return Output(loss, *(x[: len(view1)].detach() for x in (feature, projected)))

    def _swapped(self, scores_BK: Tensor, other_BK: Tensor) -> Tensor:
        """Return the cross-entropy of one view's prediction with the other view's code (eq. 2)."""
        codes = codes_of(other_BK, self.eps, self.iterations)
        return F.cross_entropy(scores_BK / self.temperature, codes)

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """Compare with chance: a prediction that is equal for all prototypes costs ln K."""
        return against_chance(loss, math.log(self.online.prototypes.out_features))


def codes_of(scores_BK: Tensor, eps: float, iterations: int) -> Tensor:
    """Return codes [B, K] of this process's images, balanced over all processes, no gradient."""
    everyone = sinkhorn(gather(scores_BK), eps, iterations)
    first = rank() * len(scores_BK)
    return everyone[first : first + len(scores_BK)]


def sinkhorn(scores_NK: Tensor, eps: float, iterations: int) -> Tensor:
    """Return the soft assignment exp(scores/eps), balanced by Sinkhorn-Knopp.

    Each iteration rescales first the prototypes to equal sums, then the images to sum 1 (Cuturi
    2013; SwAV section 3.1). Rows sum to 1 exactly; columns approach N/K as iterations grow. Without
    iterations every image has its own softmax, and nothing keeps all prototypes in use.
    """
    # In logarithms, where no `eps` overflows. A log_softmax over images divides each prototype by
    # its sum, and one over prototypes divides each image by its sum. The factors 1/K and 1/N of the
    # paper cancel. The last softmax only takes the exponential: its rows are normalized already.
    logits = scores_NK / eps
    for _ in range(iterations):
        logits = logits.log_softmax(dim=0).log_softmax(dim=1)
    return logits.softmax(dim=1)
