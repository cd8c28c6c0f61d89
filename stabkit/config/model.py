"""Settings of the backbone."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stabkit.config.section import Number, Section, Size

RESNETS = ("resnet18", "resnet50", "resnetv2_50x1_bit")


class ModelConfig(Section):
    """The backbone: `vit`, sized by the fields that follow; one of RESNETS; or a ViT of timm.

    `stem` of a ViT is `patch`, the projection of p x p pixels, or `conv`, 3x3 convolutions of
    stride 2 (Xiao et al. 2021; they take one block off `depth` in return, which you do yourself).
    A ResNet must name its stem: `imagenet` (7x7 stride 2, max-pooling) or `cifar` (3x3 stride 1,
    no pooling).

    All other settings are for ViTs:

    - `freeze_patch_embed`: the patch projection does not train, nor do the scale and shift of
      `patch_norm: batch`; its running statistics still follow the data.
    - `patch_norm`: BN after the patch projection, or WeightNorm of it.
    - `pool`: the class token after LN (`token`); or, without a class token, the mean of the patch
      tokens after LN (`norm_then_mean`) or without LN (`mean`).
    - `mlp_norm: batch`: BN over all tokens instead of LN before every MLP (the paper's ViT-BN).
    - `qk_norm`: LN of queries and keys in each head (Dehghani et al. 2023).
    """

    name: str = "vit"
    patch_size: Size | None = None
    width: Size | None = None
    depth: Annotated[int, Number, Field(gt=0, le=1000)] | None = None
    heads: Size | None = None
    freeze_patch_embed: bool = False
    stem: Literal["patch", "conv", "imagenet", "cifar"] = "patch"
    patch_norm: Literal["none", "batch", "weight"] = "none"
    positions: Literal["sincos", "learned", "none"] = "sincos"
    pool: Literal["token", "norm_then_mean", "mean"] = "token"
    mlp_norm: Literal["layer", "batch"] = "layer"
    qk_norm: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name.startswith("resnet"):
            return self._complete_resnet()
        if self.stem not in ("patch", "conv"):
            raise ValueError(f"stem {self.stem!r} is a ResNet's; {self.name} takes patch or conv")
        missing = [k for k in ("patch_size", "width", "depth", "heads") if getattr(self, k) is None]
        if self.name == "vit" and missing:
            raise ValueError(f"the custom vit needs {', '.join(missing)}")
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions == "sincos" and self.width and self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 (2-D sin-cos positions)")
        if self.stem == "conv":
            ignored = [k for k in ("freeze_patch_embed", "patch_norm") if self._is_set(k)]
            if ignored:
                raise ValueError(
                    f"{' and '.join(ignored)} would act on a patch projection, which stem 'conv' "
                    "does not have; use stem: patch"
                )
            if self.patch_size and self.width:
                conv_stem_widths(self.patch_size, self.width)
        return self

    def _complete_resnet(self) -> Self:
        if self.name not in RESNETS:
            raise ValueError(f"name {self.name!r} is no known ResNet; known: {', '.join(RESNETS)}")
        stems = ("imagenet",) if self.name.endswith("_bit") else ("imagenet", "cifar")
        if self.stem not in stems:
            raise ValueError(f"{self.name} needs stem: {' or '.join(stems)}, not {self.stem!r}")
        foreign = [k for k in type(self).model_fields if k not in ("name", "stem")]
        given = [f"{k} {getattr(self, k)!r}" for k in foreign if self._is_set(k)]
        if given:
            raise ValueError(f"{self.name} has no {', '.join(given)}: settings of a ViT")
        return self

    def _is_set(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def conv_stem_widths(patch_size: int, width: int) -> list[int]:
    """Return the channels of the stride-2 convolutions of a stem: …, C/4, C/2, C.

    Each halves the resolution, down to one token a patch. Raises ValueError when sizes do not
    divide.
    """
    steps = patch_size.bit_length() - 1
    if steps < 1 or patch_size != 2**steps:
        raise ValueError(f"stem 'conv' needs a patch_size of 2, 4, 8, 16 …, not {patch_size}")
    if width % 2 ** (steps - 1):
        raise ValueError(
            f"stem 'conv' with patch_size {patch_size} needs a width that is a multiple of "
            f"{2 ** (steps - 1)}, not {width}"
        )
    return [width >> i for i in reversed(range(steps))]
