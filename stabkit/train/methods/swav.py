"""SwAV (Caron et al. 2020): predict the cluster of one view from the other, clusters equally full.

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
    """What the optimizer trains: backbone, projector, prototypes (unit rows [K, C])."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__(backbone, width, config, norm="none", predictor=False)
        self.prototypes = nn.Linear(config.out, config.prototypes, bias=False)
        self.normalise_prototypes()

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


class SwAV(nn.Module):
    """One network for both views; their codes come from it too, without gradient."""

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
        online, weight = self.online, self.online.prototypes.weight
        if step < self.frozen_steps:
            # left without a gradient, not given a zero one: weight decay would shrink them
            weight = weight.detach()
        else:
            online.normalise_prototypes()
        feature, projected, _ = online(torch.cat([view1, view2]))
        scores1, scores2 = (F.normalize(projected, dim=1) @ weight.T).chunk(2)
        loss = (self._swapped(scores1, scores2) + self._swapped(scores2, scores1)) / 2
        return Output(loss, *(x[: len(view1)].detach() for x in (feature, projected)))

    def _swapped(self, scores_BK: Tensor, other_BK: Tensor) -> Tensor:
        """Cross-entropy of one view's prediction with the other view's code (equation 2)."""
        codes = codes_of(other_BK, self.eps, self.iterations)
        return F.cross_entropy(scores_BK / self.temperature, codes)

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """A prediction that is the same for every prototype costs ln K."""
        return against_chance(loss, math.log(self.online.prototypes.out_features))


def codes_of(scores_BK: Tensor, eps: float, iterations: int) -> Tensor:
    """[B, K] codes of this process's images, balanced over the images of all; without gradient."""
    everyone = sinkhorn(gather(scores_BK), eps, iterations)
    first = rank() * len(scores_BK)
    return everyone[first : first + len(scores_BK)]


def sinkhorn(scores_NK: Tensor, eps: float, iterations: int) -> Tensor:
    """Soft assignment exp(scores/eps), rescaled in turn to equal prototypes, then to unit images.

    Rows sum to 1 exactly, columns to N/K the closer the more iterations (Cuturi 2013; SwAV section
    3.1). With none every image has its own softmax and nothing keeps prototypes in use. In
    logarithms, so that no `eps` overflows.
    """
    logits = scores_NK / eps
    for _ in range(iterations):
        logits = logits.log_softmax(dim=0).log_softmax(dim=1)
    return logits.softmax(dim=1)
