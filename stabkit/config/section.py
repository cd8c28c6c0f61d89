"""The base class of configuration sections, and the types of their fields."""

import re
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

MANY = 1_000_000_000


def _number(value: Any) -> Any:
    """Refuse text and booleans, which pydantic would convert to numbers."""
    if isinstance(value, bool | str):
        message = "Input should be number, written as 90, 0.5 or 1e-3"
        raise PydanticCustomError("number", message)
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
        field: FieldInfo = cls.model_fields[info.field_name]
        kinds = {field.annotation, *get_args(field.annotation)}
        if kinds == {bool} and not isinstance(value, bool):
            raise PydanticCustomError("boolean", "Input should be boolean: write true or false")
        if kinds <= {int, float, type(None)}:
            return _number(value)
        return value
