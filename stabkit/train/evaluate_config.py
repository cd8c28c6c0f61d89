"""Settings of an evaluation. Not part of a run's configuration: they cannot change the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stabkit.config import (
    ConfigError,
    DataConfig,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunConfig,
    Section,
    parse_overrides,
    validate,
    with_settings,
)

Method = Literal["knn", "linear", "finetune"]
METRICS: dict[Method, str] = {"knn": "knn_full", "linear": "linear", "finetune": "finetune"}


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


# stored as int16
Neighbours = Annotated[int, Field(gt=0, lt=2**15)]


class FullKnnConfig(Section):
    """kNN with the whole training set as bank; every `k` from one search."""

    k: Annotated[tuple[Neighbours, ...], Field(min_length=1), BeforeValidator(_several)] = (
        (10, 20, 100, 200)
    )  # fmt: skip
    temperature: PositiveFloat = 0.07


class LinearConfig(Section):
    """Linear probe by SGD without weight decay; each `lr` is a base rate: lr·batch/256 is used.

    `choose_on` is the share of the training images held back to choose the rate.
    """

    lr: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), BeforeValidator(_several)] = (
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    )  # fmt: skip
    epochs: PositiveInt = 90
    batch: PositiveInt = 1024
    momentum: Fraction = 0.9
    choose_on: Annotated[float, Field(gt=0, lt=1)] = 0.1


class FinetuneConfig(Section):
    """End-to-end fine-tuning by AdamW; `lr` is a base rate: lr·batch/256 is used.

    `layer_decay` multiplies the rate once for every block between a layer and the head; `mixup`
    and `cutmix` are the alphas of their Beta distributions, 0 is off.
    """

    lr: PositiveFloat = 5e-4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    weight_decay: NonNegativeFloat = 0.05
    epochs: PositiveInt = 100
    warmup_epochs: NonNegativeInt = 5
    batch: Annotated[int, Field(gt=0, multiple_of=2)] = 128
    mixup: NonNegativeFloat = 0.8
    cutmix: NonNegativeFloat = 1.0
    label_smoothing: Fraction = 0.1
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.08

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} exceeds epochs {self.epochs} of fine-tuning"
            )
        return self


class EvaluateConfig(Section):
    """`data` is the run's own unless told otherwise: transfer is an override of it."""

    seed: NonNegativeInt = 0
    data: DataConfig
    knn: FullKnnConfig = FullKnnConfig()
    linear: LinearConfig = LinearConfig()
    finetune: FinetuneConfig = FinetuneConfig()


def evaluate_config(run: RunConfig, overrides: Sequence[str]) -> EvaluateConfig:
    """The run's data and the defaults, with `key=value` overrides.

    Another `data.name` or `data.path` is another set: of the run's data only the image size stays.
    """
    settings = parse_overrides(overrides)
    data: dict[str, Any] = run.data.model_dump()
    if any(settings.get(f"data.{key}", data[key]) != data[key] for key in ("name", "path")):
        data = {"image_size": run.data.image_size, "name": run.data.name}
    config = validate(EvaluateConfig, with_settings({"data": data}, settings), "command line")
    if config.data.image_size != run.data.image_size:
        problem = f"data.image_size = {config.data.image_size}: should be {run.data.image_size}, "
        raise ConfigError("command line", [problem + "the size the backbone was built for"])
    return config


def metric_name(method: str, run: DataConfig, evaluated: DataConfig) -> str:
    """`linear`, or `linear_cifar100` when the run was not trained on these data."""
    if evaluated == run.model_copy(update={"download": evaluated.download}):
        return method
    named = evaluated.name in ("parquet", "imagefolder") and evaluated.path is not None
    return f"{method}_{Path(str(evaluated.path)).name if named else evaluated.name}"
