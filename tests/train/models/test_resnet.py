import math

import pytest
import torch
from torch import nn

from stabkit.config import ModelConfig
from stabkit.monitor.layers import group_layers
from stabkit.train.models.resnet import build_resnet


def build(name: str, stem: str) -> nn.Module:
    torch.manual_seed(0)
    return build_resnet(ModelConfig.model_validate({"name": name, "stem": stem}))


@pytest.mark.lengthy
@pytest.mark.parametrize(("stem", "size"), [("imagenet", 2), ("cifar", 8)])
def test_the_stem_decides_how_much_of_a_small_image_is_left(stem: str, size: int) -> None:
    resnet = build("resnet18", stem)
    assert resnet.forward_features(torch.randn(2, 3, 64, 64)).shape == (2, 512, size, size)
    assert resnet(torch.randn(2, 3, 64, 64)).shape == (2, 512)


@pytest.mark.lengthy
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_residual_block_starts_as_its_shortcut(stem: str) -> None:
    resnet = build("resnet18", stem).eval()
    x = torch.randn(2, 64, 8, 8)
    assert resnet.layer1[0](x).equal(x.relu())
    for block in [*resnet.layer1, *resnet.layer2, *resnet.layer3, *resnet.layer4]:
        assert block.bn2.weight.abs().max() == 0
        assert block.bn1.weight.eq(1).all()
    assert all(b.bn3.weight.abs().max() == 0 for b in build("resnet50", stem).layer3)


def test_the_cifar_stem_is_drawn_like_the_others() -> None:
    """Compare with He et al. 2015 over fan-out: std sqrt(2 / (9·64))."""
    weight = build("resnet18", "cifar").conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    # The standard error of a standard deviation of 1728 draws is 1.7 % of it; four are allowed.
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.07)


@pytest.mark.lengthy
def test_output_is_the_mean_of_the_last_map() -> None:
    for name in ("resnet18", "resnetv2_50x1_bit"):
        resnet = build(name, "imagenet").eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(resnet(images), resnet.forward_features(images).mean((2, 3)))


@pytest.mark.lengthy
def test_bit_has_groups_and_standardized_weights_instead_of_bn() -> None:
    bit = build("resnetv2_50x1_bit", "imagenet")
    assert not [m for m in bit.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        bit.double().eval()
        images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
        before = bit(images)
        bit.stages[1].blocks[0].conv2.weight.mul_(2).add_(1)
        # Equal up to 1e-8, which the standardization adds to the variance of a filter, about 2e-3.
        torch.testing.assert_close(bit(images), before, rtol=1e-3, atol=1e-5)


@pytest.mark.lengthy
def test_layers_come_in_depth_order() -> None:
    cases = [
        ("resnet18", "cifar", ["conv1", "bn1", "layer1.0", "layer1.1"]),
        ("resnetv2_50x1_bit", "imagenet", ["stem", *(f"stages.0.blocks.{i}" for i in range(3))]),
    ]
    for name, stem, first in cases:
        names = [f"backbone.{n}" for n, _ in build(name, stem).named_parameters()]
        assert group_layers(names)[0][:4] == first
