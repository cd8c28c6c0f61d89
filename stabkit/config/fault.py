"""Settings of a planted cause of instability, for positive controls."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from stabkit.config.section import NonNegativeInt, Number, Section


class FaultConfig(Section):
    """Gradients that are held back, and return at a known step: a dip with a known cause.

    In the updates before `until`, all gradients are multiplied by `scale`. Adam divides by its
    second moment, so training goes on almost as if nothing had happened, while the second moment
    forgets how large gradients are. When they return, updates are too large until it has learned
    again, about 1 / (1 - beta2) steps later. The gradients of layer `first` return `lead` updates
    earlier, so that a burst begins in a known layer. With `until` 0 nothing is planted.
    """

    until: NonNegativeInt = 0
    scale: Annotated[float, Number, Field(gt=0, lt=1)] = 1e-3
    first: str | None = None
    lead: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.until:
            given = self.model_fields_set - {"until"}
            for name in sorted(given):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {getattr(self, name)} does nothing with until 0")
        elif (self.first is None) != (self.lead == 0):
            raise ValueError(
                f"first {self.first} and lead {self.lead}: give both, a layer and a number of "
                "steps above 0, or none"
            )
        elif self.lead >= self.until:
            raise ValueError(f"lead {self.lead} must be below until {self.until}")
        return self
