"""Build any backbone."""

from typing import TYPE_CHECKING, TypeAlias

from stabkit.config import RESNETS, ModelConfig
from stabkit.train.models.vit_config import build_vit

if TYPE_CHECKING:
    from timm.models.resnet import ResNet
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    from stabkit.train.models.vit import PlainViT

Backbone: TypeAlias = "PlainViT | VisionTransformer | ResNet | ResNetV2"


def build_backbone(config: ModelConfig, image_size: int, fused_attention: bool) -> Backbone:
    """Build a network from images [B, 3, H, W] to features [B, num_features], with fresh weights.

    Draws from torch's global generator. Raises ValueError for a model that cannot be built.
    """
    if config.name in RESNETS:
        # Imports timm, which takes seconds.
        from stabkit.train.models.resnet import build_resnet

        return build_resnet(config)
    return build_vit(config, image_size, fused_attention)
