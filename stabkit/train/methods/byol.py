"""BYOL (Grill et al. 2020): predict the momentum twin's projection of the other view."""

import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import MethodConfig
from stabkit.train.methods.heads import Online, Output, Twin


class BYOL(nn.Module):
    """Online network and its momentum twin; only the predictor and the twin prevent collapse."""

    def __init__(self, backbone: nn.Module, width: int, config: MethodConfig) -> None:
        super().__init__()
        self.online = Online(backbone, width, config, norm="hidden", predictor=config.predictor)
        self.target = Twin(self.online)

    def forward(
        self, view1: Tensor, view2: Tensor, labels: Tensor, momentum: float, step: int
    ) -> Output:
        """Return the loss of both directions; the twin moves before it encodes, as in `MoCo`.

        The authors move the twin after the update. The weights are the same, but each move
        uses the momentum of the step before.
        """
        feature1, projected1, prediction1 = self.online(view1)
        _, _, prediction2 = self.online(view2)
        self.target.follow(self.online, momentum)
        target1, target2 = self.target(view1), self.target(view2)
        loss = regression(prediction1, target2) + regression(prediction2, target1)
        return Output(loss, feature1.detach(), projected1.detach())

    def loss_scalars(self, loss: Tensor, batch: int) -> dict[str, Tensor]:
        """Return nothing: a distance has no level of chance.

        A collapsed network would even reach the minimum.
        """
        return {}


def regression(prediction_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Return 2 - 2·cos of prediction and target, mean over the batch (equation 2).

    This is the squared distance between the two as unit vectors. Targets get no gradient.
    """
    return 2 - 2 * F.cosine_similarity(prediction_BC, target_BC.detach(), dim=1).mean()
