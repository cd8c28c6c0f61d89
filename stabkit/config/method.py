"""Settings of the framework and its heads."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stabkit.config.section import NonNegativeInt, Number, PositiveFloat, Section, Size

HeadNorm = Literal["batch", "hidden", "none"]


class MethodConfig(Section):
    """The framework and its heads; the defaults are MoCo v3's for ViT (Chen, Xie, He 2021).

    - `temperature` of the contrastive loss, or of SwAV's prediction. If it is not given, it is 0.1
      for simclr and swav. `scale_loss` multiplies the loss by 2τ, as MoCo v3 does.
    - `momentum` of the twin's parameters (moco, byol); with 0 the twin is a copy. `momentum_share`
      gives it in units of the run; see `stabkit.config.shares`.
    - `head_norm`: BN after every layer of the heads (`batch`), after the hidden layers only
      (`hidden`), or nowhere (`none`). null is the framework's own choice: batch for moco and
      simclr, hidden for byol, none for swav. `predictor_norm` is the same for the predictor; null
      follows the projector. The paper's ResNet has 2 `projector_layers` and `predictor_norm:
      hidden`.
    - `queue`: how many past keys are negatives, besides the keys of the batch. MoCo v1 and v2 use
      past keys only, MoCo v3 none (0). The queue starts empty.
    - SwAV: without `sinkhorn` the clusters are not balanced, and training collapses.
      `sinkhorn_eps` sharpens the codes. The prototypes do not train for the first
      `freeze_prototypes_steps`.
    """

    name: Literal["moco", "simclr", "byol", "swav", "supervised"] = "moco"
    hidden: Size = 4096
    out: Size = 256
    projector_layers: Annotated[int, Number, Field(gt=0, le=100)] = 3
    head_norm: HeadNorm | None = None
    predictor: bool = True
    predictor_norm: HeadNorm | None = None
    temperature: PositiveFloat = 0.2
    scale_loss: bool = True
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    momentum_share: PositiveFloat | None = Field(None, exclude=True)
    momentum_schedule: Literal["cosine", "constant"] = "cosine"
    queue: Annotated[int, Number, Field(ge=0, le=10_000_000)] = 0
    prototypes: Annotated[int, Number, Field(gt=0, le=1_000_000)] = 3000
    sinkhorn: bool = True
    sinkhorn_eps: PositiveFloat = 0.05
    freeze_prototypes_steps: NonNegativeInt = 313

    @model_validator(mode="before")
    @classmethod
    def _own_temperature(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("name") in ("simclr", "swav"):
            return {"temperature": 0.1, **content}
        return content

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        """Refuse a switch without effect; a size may have none, so that sweeps compare methods."""
        owners = {
            "head_norm": ("moco", "simclr", "byol", "swav"),
            "momentum_schedule": ("moco", "byol"),
            "momentum_share": ("moco", "byol"),
            "predictor": ("moco", "byol"),
            "predictor_norm": ("moco", "byol"),
            "scale_loss": ("moco",),
            "queue": ("moco",),
            "sinkhorn": ("swav",),
            "sinkhorn_eps": ("swav",),
        }
        for key, names in owners.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.name not in names:
                owner = " or ".join(names)
                raise ValueError(f"{key} {value} does nothing for {self.name}: only for {owner}")
        if self.predictor_norm and not self.predictor:
            raise ValueError(f"predictor_norm {self.predictor_norm} needs predictor true")
        return self
