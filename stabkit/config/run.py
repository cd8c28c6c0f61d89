"""The settings of a run; those of model, method, optimizer and compute have their own files."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stabkit.config.branch import BranchConfig
from stabkit.config.compute import ComputeConfig
from stabkit.config.fault import FaultConfig
from stabkit.config.method import MethodConfig
from stabkit.config.model import RESNETS, ModelConfig
from stabkit.config.optim import OptimConfig
from stabkit.config.section import (
    Device,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Rows,
    Section,
    Seed,
    Size,
)
from stabkit.config.shares import resolve_shares


class DataConfig(Section):
    """The data. `num_train` and `num_heldout` are the sizes of `synthetic`, else caps (0: all)."""

    name: Literal["synthetic", "parquet", "imagefolder", "tar", "cifar10", "cifar100", "stl10"] = (
        "synthetic"
    )
    path: str | None = None
    image_size: Annotated[int, Number, Field(gt=0, le=4096)] = 32
    num_train: Rows = 0
    num_heldout: Rows = 0
    download: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name == "synthetic":
            if not (self.num_train and self.num_heldout):
                raise ValueError("synthetic data needs num_train and num_heldout above 0")
        elif self.path is None:
            raise ValueError(f"{self.name} data needs path, the folder that holds it")
        return self


class ViewsConfig(Section):
    """The two augmented views; the defaults are MoCo v3's for ViT."""

    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be (low, high), not {self.blur_sigma}")
        return self


class TrainConfig(Section):
    """The global batch size and the number of updates."""

    batch: Size = 64
    steps: PositiveInt = 700


class KnnConfig(Section):
    """The kNN evaluations: weighted vote (Wu et al. 2018), as in appendix A of MoCo v3.

    `bank` fixed training images vote on `queries` held-out images. `fifo` is the share of the
    training set that the first-in-first-out bank of the paper's free monitor holds.
    """

    every: PositiveInt = 10
    k: PositiveInt = 200
    temperature: PositiveFloat = 0.07
    queries: PositiveInt = 1000
    bank: PositiveInt = 1000
    fifo: Annotated[float, Field(gt=0, le=1)] = 0.1


class RuntimeConfig(Section):
    """How a run is executed and recorded. Nothing here changes its id.

    - `device` and `threads` change the last bits of the results; the other settings change none. A
      run that would go on with another device or number of threads is refused, unless
      `allow_inexact`. Without `threads` it goes on with the number that it began with.
    - `signals`: levels besides `basic`, measured on a small batch every `signals_every` steps.
    - `keep_states`: how many checkpoints are kept, the nearer the denser, and as many again before
      events. By default none: a replay can always begin at the seed, so states buy time with disk.
    - `cache`: a folder for decoded pixels, when there are too many images to hold in memory.
    - `runs_per_gpu`: how many runs of a local sweep share a GPU, each in its own process.
    """

    device: Device = "auto"
    threads: Annotated[int, Number, Field(gt=0, le=4096)] | None = None
    allow_inexact: bool = False
    runs_per_gpu: PositiveInt = 1
    checkpoint_every: PositiveInt = 100
    keep_states: NonNegativeInt = 0
    flush_every: PositiveInt = 50
    signals: tuple[Literal["attention", "features", "curvature"], ...] = ()
    signals_every: PositiveInt = 50
    cache: str | None = None


class RunConfig(Section):
    """One training: all that decides its result, and how it is executed (`runtime`)."""

    seed: Seed = 0
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    compute: ComputeConfig = ComputeConfig()
    fault: FaultConfig = FaultConfig()
    knn: KnnConfig = KnnConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    branch: BranchConfig | None = None

    @property
    def begin(self) -> int:
        """Return the first update; that of a branch is where it leaves its parent."""
        return self.branch.step if self.branch else 0

    @property
    def end(self) -> int:
        """Return how many updates are made. Schedules always span `train.steps`."""
        return self.branch.end if self.branch else self.train.steps

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        try:
            train = TrainConfig.model_validate(content.get("train", {}))
        except ValidationError:
            return content  # its own check says what is wrong
        return resolve_shares(content, train.batch, train.steps)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        size, patch = self.data.image_size, self.model.patch_size
        if patch and size % patch:
            raise ValueError(
                f"data.image_size {size} is not a multiple of model.patch_size {patch}"
            )
        if self.optim.clip == "patch_embed" and self.model.freeze_patch_embed:
            raise ValueError(
                "optim.clip patch_embed has nothing to clip: model.freeze_patch_embed is true"
            )
        if self.optim.clip == "patch_embed" and self.model.name in RESNETS:
            raise ValueError(f"optim.clip patch_embed: {self.model.name} has no patch projection")
        if self.compute.fused_optimizer and self.optim.name not in ("adamw", "sgd"):
            raise ValueError(
                f"compute.fused_optimizer: {self.optim.name} has none, only adamw and sgd have"
            )
        if self.branch and self.branch.end > self.train.steps:
            raise ValueError(f"branch.end {self.branch.end} exceeds train.steps {self.train.steps}")
        if self.train.batch < 2:
            raise ValueError("train.batch must be at least 2: a contrastive loss needs a negative")
        if self.data.name == "synthetic" and self.train.batch > self.data.num_train:
            raise ValueError(
                f"train.batch {self.train.batch} exceeds data.num_train {self.data.num_train}"
            )
        return self
