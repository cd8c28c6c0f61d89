"""Settings of the optimizer, its schedule, and what keeps it stable."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stabkit.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    Section,
)


class OptimConfig(Section):
    """The optimizer. `lr` is the base rate, from which `lr_rule` computes the peak rate.

    The peak is lr·batch/256 (`linear`), lr·√(batch/256) (`sqrt`) or lr (`none`).

    `decay_all` decays every parameter, with biases, norms and class token, as the paper's code
    does. Without it, parameters of fewer than two dimensions, WeightNorm's gains, class token and
    positions are not decayed. LARS and LAMB never decay or adapt the first two of these. `eps` of
    LAMB is 1e-6 unless given (You et al. 2020). `momentum` is for sgd and lars; `trust` is the
    coefficient of LARS.

    `clip` acts on the gradients before the update. `clip_at` is the largest

    - total norm (`global`), or norm of any layer (`layer`);
    - norm of the patch projection in units of its running mean (`patch_embed`): Adam-type updates
      do not change under a constant factor, so a fixed threshold would do nothing, or freeze it;
    - norm of a row in units of its weights' norm (`agc`, Brock et al. 2021);
    - z-score of the total norm among its running values (`zclip`, Kumar et al. 2025).

    `schedule` is the rate after the warm-up: half a cosine to 0, or constant.

    `warmup_share`, `beta2_share` and `decay_total` give `warmup_steps`, `beta2` and `weight_decay`
    in units of the run; see `stabkit.config.shares`.

    `skip_nonfinite` drops a step whose gradient is not finite: weights, optimizer, twin, BN
    statistics and queue stay as they were before it. The scalar `skipped` is 1 for such a step.
    """

    name: Literal["adamw", "lars", "lamb", "sgd", "stable_adamw"] = "adamw"
    lr: PositiveFloat = 1.5e-4
    lr_rule: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: NonNegativeFloat = 0.1
    decay_all: bool = True
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    momentum: Fraction = 0.9
    trust: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    warmup_share: Annotated[float, Number, Field(ge=0, le=1)] | None = Field(None, exclude=True)
    beta2_share: PositiveFloat | None = Field(None, exclude=True)
    decay_total: NonNegativeFloat | None = Field(None, exclude=True)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: Literal["none", "global", "layer", "patch_embed", "agc", "zclip"] = "none"
    clip_at: PositiveFloat | None = None
    skip_nonfinite: bool = False

    @model_validator(mode="before")
    @classmethod
    def _own_eps(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("name") == "lamb":
            return {"eps": 1e-6, **content}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clip != "none" and self.clip_at is None:
            raise ValueError(f"clip {self.clip} needs clip_at, {_CLIP_AT[self.clip]}")
        if self.clip == "none" and self.clip_at is not None:
            raise ValueError(f"clip_at {self.clip_at} without clip: one of {', '.join(_CLIP_AT)}")
        for field, users in _USED_BY.items():
            value = getattr(self, field)
            if self.name not in users and value != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field} {value} has no meaning for {self.name}, only for {', '.join(users)}"
                )
        return self


_ADAM_TYPE = ("adamw", "lamb", "stable_adamw")
_USED_BY = {
    "beta1": _ADAM_TYPE,
    "beta2": _ADAM_TYPE,
    "beta2_share": _ADAM_TYPE,
    "eps": _ADAM_TYPE,
    "momentum": ("sgd", "lars"),
    "trust": ("lars",),
}
_CLIP_AT = {
    "global": "a total norm, e.g. 1.0",
    "layer": "a norm, e.g. 1.0",
    "patch_embed": "in units of the running norm, e.g. 1.5",
    "agc": "in units of the weights' norm, e.g. 0.01",
    "zclip": "a z-score, e.g. 2.5",
}
