"""The base class of configuration sections, and the types of their fields."""

import re
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

MANY = 1_000_000_000


def _number(value: Any) -> Any:
    """Refuse text and booleans, which pydantic would convert to numbers."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "a number")
    return value


def _fits(seed: int) -> int:
    if seed >= 2**64:
        raise ValueError(f"{seed} has more than 64 bits; at most {2**64 - 1}")
    return seed


Number = BeforeValidator(_number)
Seed = Annotated[int, Number, Field(ge=0), AfterValidator(_fits)]
PositiveInt = Annotated[int, Number, Field(gt=0, le=MANY)]
NonNegativeInt = Annotated[int, Number, Field(ge=0, le=MANY)]
Size = Annotated[int, Number, Field(gt=0, le=65_536)]  # the width of a layer, or a batch
Rows = Annotated[int, Number, Field(ge=0, le=100_000_000)]  # a number of images
PositiveFloat = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Number, Field(ge=0, lt=1)]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:[0-9]{1,3})?", value):
        message = "Input should be auto, cpu, cuda, mps or xpu, or with a number: cuda:0, cuda:1, …"
        raise PydanticCustomError("device", message)
    return value


Device = Annotated[str, AfterValidator(_device)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and values of a wrong type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _spelled(cls, value: Any, info: Any) -> Any:
        kind = _kind(cls, info.field_name)
        if kind == "boolean" and not isinstance(value, bool):
            raise PydanticCustomError("boolean", "true or false")
        return _number(value) if kind == "number" else value


@cache
def _kind(section: type[Section], name: str) -> Literal["boolean", "number", "other"]:
    """Return what a field holds; cached, since a sweep asks for every field of every run."""
    annotation = section.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if kinds == {bool}:
        return "boolean"
    return "number" if kinds <= {int, float, type(None)} else "other"
