"""Settings of an evaluation; no part of a run's configuration, since they cannot change the run."""

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
    RuntimeConfig,
    Section,
    parse_overrides,
    validate,
    with_settings,
)

Method = Literal["knn", "linear", "finetune"]
METRICS: dict[Method, str] = {"knn": "knn_full", "linear": "linear", "finetune": "finetune"}


def _several(value: Any) -> Any:
    """Turn one value into a tuple, and sort numbers without repeats.

    Numbers are sorted, so that the smallest of several equally good ones is chosen.
    """
    if not isinstance(value, list | tuple):
        return (value,)
    numbers = all(isinstance(v, int | float) for v in value)
    return tuple(sorted(set(value))) if numbers else value


# The table stores k as int16.
Neighbors = Annotated[int, Field(gt=0, lt=2**15)]


class FullKnnConfig(Section):
    """kNN with the whole training set as bank; one search serves every `k`."""

    k: Annotated[tuple[Neighbors, ...], Field(min_length=1), BeforeValidator(_several)] = (
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
    """All settings of an evaluation; `data` and `runtime` are the run's own unless given.

    Transfer is an evaluation on another `data`.
    """

    seed: NonNegativeInt = 0
    data: DataConfig
    knn: FullKnnConfig = FullKnnConfig()
    linear: LinearConfig = LinearConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def evaluate_config(run: RunConfig, overrides: Sequence[str]) -> EvaluateConfig:
    """Return the run's data and the defaults, with `key=value` overrides.

    Another `data.name` or `data.path` is another set, which keeps only the image size of the run's
    data. Raises ConfigError for a setting that is wrong.
    """
    settings = parse_overrides(overrides)
    data: dict[str, Any] = run.data.model_dump()
    asked = run.data.model_copy(
        update={key: settings.get(f"data.{key}", data[key]) for key in ("name", "path")}
    )
    if _source(asked) != _source(run.data):
        data = {"image_size": run.data.image_size, "name": run.data.name}
    config = validate(
        EvaluateConfig,
        with_settings({"data": data, "runtime": run.runtime.model_dump()}, settings),
        "command line",
    )
    if config.data.image_size != run.data.image_size:
        problem = f"data.image_size = {config.data.image_size}: should be {run.data.image_size}, "
        raise ConfigError("command line", [problem + "the size the backbone was built for"])
    return config


def metric_name(method: str, run: DataConfig, evaluated: DataConfig) -> str:
    """Return `method`, such as `linear`, or `linear_cifar100` if the run trained on other data."""
    same = {"download": evaluated.download, "path": evaluated.path}
    if _source(evaluated) == _source(run) and evaluated == run.model_copy(update=same):
        return method
    return f"{method}_{_source(evaluated)[1]}"


def _source(data: DataConfig) -> tuple[str, str]:
    """Return the kind and the name of a data set; they are the same wherever its folder lies."""
    named = data.name in ("parquet", "imagefolder", "tar") and data.path is not None
    return data.name, Path(str(data.path)).expanduser().resolve().name if named else data.name
