"""Build the framework that trains a run.

All frameworks share one interface, so the loop makes the same step for each of them:
- `method(view1, view2, labels, momentum, step)` returns an `Output`: loss, feature, embedding;
- `method.online` is what the optimizer trains and the Monitor measures; its `online.backbone` is
  what evaluations use;
- `method.loss_scalars(loss, batch)` returns the loss of the step just done on scales that compare
  across settings, if the framework has such scales: `loss_nats`, and `loss_relative`, which is 1 at
  chance.
"""

from torch import nn

from stabkit.config import MethodConfig
from stabkit.train.methods.byol import BYOL
from stabkit.train.methods.moco import MoCo
from stabkit.train.methods.simclr import SimCLR
from stabkit.train.methods.supervised import Supervised
from stabkit.train.methods.swav import SwAV

Method = MoCo | SimCLR | BYOL | SwAV | Supervised


def build_method(config: MethodConfig, backbone: nn.Module, width: int, num_classes: int) -> Method:
    """Build the framework around `backbone`, which maps images to features [B, width].

    Draws from torch's global generator. Raises ValueError for supervised training with fewer than
    two classes.
    """
    if config.name == "moco":
        return MoCo(backbone, width, config)
    if config.name == "simclr":
        return SimCLR(backbone, width, config)
    if config.name == "byol":
        return BYOL(backbone, width, config)
    if config.name == "swav":
        return SwAV(backbone, width, config)
    if num_classes < 2:
        raise ValueError(f"method.name 'supervised' needs at least 2 classes, not {num_classes}")
    return Supervised(backbone, width, num_classes)
