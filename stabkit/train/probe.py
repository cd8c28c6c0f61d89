"""What the Monitor's probe signals look at: a few training images, always the same ones."""

import numpy as np
import torch
from torch import Tensor, nn

from stabkit.config import RunConfig
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.ranks import world_size
from stabkit.train.data.image_set import moved
from stabkit.train.data.load import ImageSet
from stabkit.train.data.views import two_views
from stabkit.train.methods.build import Method
from stabkit.train.optim.clipping import side_effects
from stabkit.train.randomness import permutation

IMAGES = 64  # at most: attention of a few images is cheap, and a spread needs several


def build_probe(
    config: RunConfig, model: Method, images: ImageSet, device: torch.device
) -> Probe | None:
    """Return what probe signals look at; None when no such signal is asked for.

    The views are augmented as in training, but by a fixed seed: every run on a data set sees the
    same ones.
    """
    if not config.runtime.signals:
        return None
    index = permutation(seed=0, epoch=0, n=len(images))[: min(IMAGES, config.train.batch)]
    view1, view2 = two_views(
        moved(images.load(index), device),
        0,
        0,
        index,
        config.data.image_size,
        config.views.min_scale,
        config.views.blur_sigma,
    )
    labels = torch.from_numpy(np.asarray(images.labels[index])).to(device)

    def features(online: nn.Module, view: Tensor) -> Tensor:
        feature: Tensor = online.get_submodule("backbone")(view)
        return feature

    def loss(online: nn.Module) -> Tensor:
        """Return the training's loss on the probe's views, without a trace.

        The momentum encoder and the queue are restored here; the caller restores the buffers of
        `online`.
        """
        beside = {k: v for k, v in side_effects(model).items() if not k.startswith("online.")}
        online.train()
        # momentum 1 leaves the encoder as it is; before step 0 prototypes are not normalized
        value: Tensor = model(view1, view2, labels, 1.0, -1).loss
        model.load_state_dict(beside, strict=False)
        return value

    target = getattr(model, "target", None)
    alone = world_size() == 1
    return Probe(view1, view2, features, loss if alone else None, target)
