"""The framework a run is trained by.

All share one interface, so that the loop is one step for any of them:
- `method(view1, view2, labels, momentum, step)` gives an `Output`: loss, features, embeddings;
- `method.online` is what the optimizer trains and the Monitor measures, `online.backbone` in it
  what is evaluated;
- `method.loss_scalars(loss, batch)` is the loss of the step just done on scales that compare, where
  the framework has such: `loss_nats`, and `loss_relative`, which is 1 at chance.
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
    """`backbone` maps images to features [B, width]. Draws from torch's global generator."""
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
