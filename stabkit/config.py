"""The typed configuration of a run: sections, reading, overrides, errors, identity."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stabkit.yamlio import dump_yaml, parse_yaml, read_yaml

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
HeadNorm = Literal["batch", "hidden", "none"]


class ConfigError(ValueError):
    """A request that cannot be run; `problems` holds every reason, one line each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        super().__init__(
            "\n".join([f"{source}:", *(f"  - {problem}" for problem in self.problems)])
        )


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=Section)


class DataConfig(Section):
    """What is trained on. `num_train`, `num_heldout`: size of `synthetic`, else a cap (0: all)."""

    name: Literal["synthetic", "parquet", "imagefolder", "cifar10", "cifar100", "stl10"] = (
        "synthetic"
    )
    path: str | None = None
    image_size: PositiveInt = 32
    num_train: NonNegativeInt = 0
    num_heldout: NonNegativeInt = 0
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
    """The two augmented views; defaults are MoCo v3's for ViT."""

    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be (low, high), not {self.blur_sigma}")
        return self


RESNETS = ("resnet18", "resnet50", "resnetv2_50x1_bit")


class ModelConfig(Section):
    """The backbone: `vit` is sized by the fields below it; else one of RESNETS or a timm ViT.

    `stem` of a ViT: `patch`, the projection of p x p pixels, or `conv`, 3x3 convolutions of stride
    2 (Xiao et al. 2021, who take one block off `depth` for it; that is left to you). A ResNet must
    name its own: `imagenet` (7x7 stride 2, max-pooling) or `cifar` (3x3 stride 1, no pooling).

    All else is a ViT's. `freeze_patch_embed`: no parameter of the patch projection trains, nor the
    scale and shift of a `patch_norm: batch`, whose statistics follow the data all the same.
    `patch_norm`: BN after the projection, or WeightNorm of it. `pool`: class token after LN; no
    class token, mean of the patches after LN or of the patches without LN. `mlp_norm: batch`: BN
    over all tokens in place of LN before every MLP (the paper's ViT-BN). `qk_norm`: LN of queries
    and keys per head (Dehghani et al. 2023).
    """

    name: str = "vit"
    patch_size: PositiveInt | None = None
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    heads: PositiveInt | None = None
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
            raise ValueError(f"name {self.name!r} is no ResNet known here: {', '.join(RESNETS)}")
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
    """Channels of the stride-2 convolutions that cut `patch_size` down to 1: …, C/4, C/2, C.

    Raises ValueError when halving does not come out even.
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


class MethodConfig(Section):
    """The framework and its heads; defaults are MoCo v3's for ViT (Chen, Xie, He 2021).

    - `temperature`: of the contrastive loss or of SwAV's prediction; not given, it is .1 for
      simclr and swav. `scale_loss`: MoCo v3's factor 2τ.
    - `momentum`: of the twin's parameters (moco, byol); 0 makes it a copy.
    - `head_norm`: BN after every layer of the heads, after hidden ones, or none; null is the
      framework's own: batch for moco and simclr, hidden for byol, none for swav.
      `predictor_norm`: the same of the predictor alone; null follows the projector. The paper's
      ResNet has 2 `projector_layers` and a predictor with `hidden`.
    - `queue`: past keys that are further negatives, as in MoCo v1 and v2; 0 is v3.
    - SwAV: `sinkhorn` false leaves the clusters unbalanced (it collapses); `sinkhorn_eps`
      sharpens the codes; prototypes keep their start for `freeze_prototypes_steps`.
    """

    name: Literal["moco", "simclr", "byol", "swav", "supervised"] = "moco"
    hidden: PositiveInt = 4096
    out: PositiveInt = 256
    projector_layers: PositiveInt = 3
    head_norm: HeadNorm | None = None
    predictor: bool = True
    predictor_norm: HeadNorm | None = None
    temperature: PositiveFloat = 0.2
    scale_loss: bool = True
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    momentum_schedule: Literal["cosine", "constant"] = "cosine"
    queue: NonNegativeInt = 0
    prototypes: PositiveInt = 3000
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
        """Sizes may stand idle, so that one sweep compares frameworks; a switch may not."""
        owners = {
            "predictor": ("moco", "byol"),
            "predictor_norm": ("moco", "byol"),
            "scale_loss": ("moco",),
            "queue": ("moco",),
            "sinkhorn": ("swav",),
        }
        for key, names in owners.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.name not in names:
                owner = " or ".join(names)
                raise ValueError(f"{key} {value} does nothing for {self.name}: only for {owner}")
        if self.predictor_norm and not self.predictor:
            raise ValueError(f"predictor_norm {self.predictor_norm} needs predictor true")
        return self


class OptimConfig(Section):
    """`lr` is the base rate; its peak: lr·batch/256 (linear), lr·√(batch/256) (sqrt), lr.

    `decay_all` decays every parameter, biases, norms and class token included, as the paper's
    code does; false leaves out everything of fewer than two dimensions and the class token. LARS
    and LAMB leave out everything of fewer than two dimensions either way, from decay and from
    adaptation. `momentum`: of sgd and lars; `trust`: LARS's coefficient.

    `clip` acts on the gradients before the update, with `clip_at` the largest
    - total norm (`global`), norm of any layer (`layer`),
    - norm of the patch projection in units of its running mean (`patch_embed`): Adam-type updates
      do not feel a constant rescale, so an absolute threshold would do nothing or freeze,
    - norm of a row in units of its weights' norm (`agc`, Brock et al. 2021),
    - z-score of the total norm among its running values (`zclip`, Kumar et al. 2025).
    `skip_nonfinite` passes over a step with a gradient that is not finite, as if it had not been.
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
    clip: Literal["none", "global", "layer", "patch_embed", "agc", "zclip"] = "none"
    clip_at: PositiveFloat | None = None
    skip_nonfinite: bool = False

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


class TrainConfig(Section):
    batch: PositiveInt = 64
    steps: PositiveInt = 700


class KnnConfig(Section):
    """kNN evaluations (Wu et al. 2018, weighted vote); paper: MoCo v3 appendix A.

    `queries` held-out images vote over `bank` fixed training images; `fifo` is the share of the
    training set held by the free monitor's first-in-first-out bank.
    """

    every: PositiveInt = 10
    k: PositiveInt = 200
    temperature: PositiveFloat = 0.07
    queries: PositiveInt = 1000
    bank: PositiveInt = 1000
    fifo: Annotated[float, Field(gt=0, le=1)] = 0.1


class RuntimeConfig(Section):
    """How a run is executed and recorded: nothing here can change what it computes."""

    device: str = "auto"
    threads: PositiveInt | None = None
    checkpoint_every: PositiveInt = 100
    flush_every: PositiveInt = 50


class RunConfig(Section):
    """One training: everything that decides its result, and how it is executed (`runtime`)."""

    seed: NonNegativeInt = 0
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    knn: KnnConfig = KnnConfig()
    runtime: RuntimeConfig = RuntimeConfig()

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
        if self.train.batch < 2:
            raise ValueError("train.batch must be at least 2: a contrastive loss needs a negative")
        if self.data.name == "synthetic" and self.train.batch > self.data.num_train:
            raise ValueError(
                f"train.batch {self.train.batch} exceeds data.num_train {self.data.num_train}"
            )
        return self


def run_id(config: RunConfig) -> str:
    """Eight hex digits that identify every setting that can change a result, and nothing else.

    Settings at their default are left out, so that a setting added later does not rename the runs
    made before it; a default, once released, therefore never changes.
    """
    decisive = config.model_dump(mode="json", exclude={"runtime"}, exclude_defaults=True)
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def preset_path(name: str) -> Path:
    return Path(__file__).parent / "presets" / f"{name}.yaml"


def preset_names() -> list[str]:
    return sorted(path.stem for path in preset_path("*").parent.glob("*.yaml"))


def read_base(base: str, folder: Path = Path()) -> dict[str, Any]:
    """The settings of a packaged preset, or of a YAML file (relative to `folder`)."""
    if "/" not in base and not base.endswith((".yaml", ".yml")):
        if base not in preset_names():
            raise ConfigError(base, [f"no such preset{suggest(base, preset_names())}"])
        return read_mapping(preset_path(base))
    return read_mapping(folder / base)


def read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [str(error)]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"holds {type(content).__name__}, not a mapping of settings"])
    return content


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3"]` as `{"optim.lr": 0.001}`; values are YAML."""
    settings: dict[str, Any] = {}
    problems = []
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not (key and sep):
            problems.append(f"{pair!r} is not of the form key=value, e.g. optim.lr=1e-3")
            continue
        try:
            settings[key] = parse_yaml(text)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError("command line", problems)
    return settings


def with_settings(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A nested copy of `base` with dotted `settings` put in, e.g. `{"optim.lr": 1e-3}`."""
    result = {k: with_settings(v, {}) if isinstance(v, Mapping) else v for k, v in base.items()}
    for dotted, value in settings.items():
        *sections, leaf = dotted.split(".")
        node = result
        for section in sections:
            child = node.get(section)
            node[section] = child if isinstance(child, dict) else {}
            node = node[section]
        node[leaf] = value
    return result


def validate(model: type[Model], content: Mapping[str, Any], source: str) -> Model:
    """Raises ConfigError with every problem found, each naming key, value and remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(source, [_explain(e, keys_of(model)) for e in error.errors()]) from None


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A preset's name or a file's path, with `key=value` overrides."""
    content = with_settings(read_base(source), parse_overrides(overrides))
    return validate(RunConfig, content, source)


def missing_data(config: RunConfig) -> str | None:
    """What is wrong with where the data should be, seen without reading any of it."""
    data = config.data
    if data.path is None or data.download or Path(data.path).expanduser().is_dir():
        return None
    return f"data.path = {data.path!r}: no such folder; {data.name} data is read from there"


def save_config(config: RunConfig) -> str:
    """The resolved, complete configuration as YAML."""
    return dump_yaml(config.model_dump(mode="json"))


def suggest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def keys_of(model: type[Section], prefix: str = "") -> list[str]:
    """Every dotted key of a model, in order."""
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += keys_of(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _explain(error: Any, known: Sequence[str]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: no such setting{suggest(key, known)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} = {error['input']!r}: should be {message}"
