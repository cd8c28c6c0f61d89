"""ResNets as the paper compares ViTs with them, and BiT's, which showed the same instability."""

import timm
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from stabkit.config import ModelConfig


def build_resnet(config: ModelConfig) -> ResNet | ResNetV2:
    """A ResNet without classifier: the mean over the last map, [B, num_features].

    ResNet-18 and -50 (BN) begin with every residual branch at zero: the scale of its last BN. BiT's
    ResNet (Kolesnikov et al. 2020: pre-activation, GN, standardised weights) begins as published.
    """
    model = timm.create_model(config.name, pretrained=False, num_classes=0)
    assert isinstance(model, ResNet | ResNetV2)
    if config.stem == "cifar":
        _shrink_stem(model)
    return model


def _shrink_stem(model: nn.Module) -> None:
    """A 3x3 convolution of stride 1 and no max-pooling: 32 pixels reach the last stage as 4."""
    conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", conv)
    model.set_submodule("maxpool", nn.Identity())
