"""Build the ResNets that the paper compares ViTs with, and BiT's, which are unstable too."""

import timm
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from stabkit.config import ModelConfig


def build_resnet(config: ModelConfig) -> ResNet | ResNetV2:
    """Build a ResNet without classifier; its output is the mean of the last map, [B, num_features].

    ResNet-18 and -50 (BN) start with every residual branch at zero: the last BN of a branch has
    scale zero. BiT's ResNet (Kolesnikov et al. 2020: pre-activation, GN, standardized weights)
    starts as published.
    """
    model = timm.create_model(config.name, pretrained=False, num_classes=0)
    assert isinstance(model, ResNet | ResNetV2)
    if config.stem == "cifar":
        _shrink_stem(model)
    return model


def _shrink_stem(model: nn.Module) -> None:
    """Replace the stem by a 3x3 convolution of stride 1 without max-pooling.

    An image of 32 pixels then reaches the last stage as a map of 4 x 4; ImageNet's stem would leave
    a single pixel.
    """
    conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    # The start that timm gives its own convolutions.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", conv)
    model.set_submodule("maxpool", nn.Identity())
