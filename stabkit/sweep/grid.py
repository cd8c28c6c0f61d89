"""Expand a sweep file to an ordered list of runs. Nothing is written, nothing is started."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from stabkit.config import (
    ConfigError,
    RunConfig,
    Section,
    Seed,
    keys_of,
    parse_overrides,
    read_base,
    read_mapping,
    run_id,
    suggest,
    validate,
    with_settings,
    without_effect,
)
from stabkit.printing import counted
from stabkit.sweep.axes import axes_of, excluded, idle_rules, product
from stabkit.sweep.slurm_request import SlurmRequest

SLURM = "slurm."  # keys that say what a run asks of a cluster, not what it computes
MAX_RUNS = 10_000
MOST_NAMED = 20  # pairs of equal runs in an error message; more have the same cause
# Overrides of these do not change the experiment that a paper published.
HARMLESS = ("runtime.", "knn.", "data.path", "data.download", "seed")
Values = Annotated[list[Any], Field(min_length=1)]


class Published(Section):
    """What a paper reports: a value for each cell, in order; null where it has none."""

    source: str
    measure: str
    values: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)] | None], Field(min_length=1)
    ]


class SweepFile(Section):
    """The content of a sweep file at one scale. Keys inside are dotted configuration keys."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    base: str
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Values] = Field(default_factory=dict)
    zip: dict[str, Values] = Field(default_factory=dict)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    published: Published | None = None
    slurm: SlurmRequest | None = None  # for every run; `slurm.KEY` in set, grid or zip adds to it

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := list(dict.fromkeys(self._problems())):
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """Yield everything that is wrong with the keys, taken together."""
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len({*lengths.values()}) > 1:
            yield f"zip pairs its lists item by item, but their lengths are {lengths}"
        if twice := self.grid.keys() & self.zip.keys():
            yield f"in both grid and zip: {', '.join(sorted(twice))}"
        known = [key for key in keys_of(RunConfig) if key != "seed"]
        known += keys_of(SlurmRequest, SLURM)
        used = [*self.set, *self.grid, *self.zip, *(key for rule in self.exclude for key in rule)]
        yield from (_no_such(key, known) for key in used if key not in known)
        varied = self.grid.keys() | self.zip.keys()
        if twice := self.set.keys() & varied:
            yield f"in set and varied as well: {', '.join(sorted(twice))}"
        if len({*lengths.values()}) <= 1:  # else there are no pairs
            rules = [rule for rule in self.exclude if {*rule} <= {*known, "seed"}]
            yield from idle_rules(rules, varied, axes_of(self.grid, self.zip, self.seeds, {}))


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: the settings that vary, the whole configuration, the folder's name.

    `published` is what a paper reports for its cell; `slurm` what the sweep file asks of a cluster.
    """

    settings: Mapping[str, Any]
    config: RunConfig
    folder: str
    published: float | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return self.folder.rpartition("-")[2]


@dataclass(frozen=True)
class Sweep:
    """A sweep file expanded at a scale; `scales` names all that it has."""

    name: str
    scale: str | None
    runs: tuple[PlannedRun, ...]
    published: Published | None = None
    scales: tuple[str, ...] = ()


def load_sweep(path: Path, scale: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Expand a sweep file at a scale: the first one it names, when None.

    Runs are in the file's order: seeds vary fastest, then the last key of `grid`. An override of a
    key that the file varies replaces all its values. The runs of every scale but the first go to a
    folder with the scale in its name. Raises ConfigError with everything that is wrong.
    """
    content = read_mapping(path)
    scales = _scales(path, content.pop("scales", {}))
    default = next(iter(scales), None)
    if scale is not None and scale not in scales:
        raise ConfigError(str(path), [f"no scale {scale!r}{suggest(scale, list(scales))}"])
    chosen = scale or default
    file = validate(SweepFile, content | (scales[chosen] if chosen else {}), str(path))
    runs = _expand(file, path, parse_overrides(overrides))
    name = file.name if chosen == default else f"{file.name}-{chosen}"
    return Sweep(name, chosen, runs, file.published, tuple(scales))


def _no_such(key: str, known: Sequence[str]) -> str:
    if key == "seed":
        return "seed: a sweep has the list seeds, e.g. seeds: [5]"
    return f"{key}: no such setting{suggest(key, known)}"


def _scales(path: Path, scales: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(scales, dict) or not all(isinstance(s, dict) for s in scales.values()):
        raise ConfigError(str(path), ["scales: should map the name of each scale to its settings"])
    return scales


def _expand(file: SweepFile, path: Path, overrides: dict[str, Any]) -> tuple[PlannedRun, ...]:
    fixed, fixed_slurm = _split_slurm(file.set)
    base = with_settings(read_base(file.base, path.parent), fixed)
    request = file.slurm.model_dump(exclude_unset=True) if file.slurm else {}
    runs, problems = [], []
    requests = set()  # those that were found right: the same for most runs of a long sweep
    combinations = _combinations(file, path, overrides)
    for settings, published in zip(
        combinations, _published(file, path, combinations, overrides), strict=True
    ):
        own, own_slurm = _split_slurm(settings)
        slurm = request | fixed_slurm | own_slurm
        try:
            config = validate(RunConfig, with_settings(base, overrides | own), str(path))
            problems += without_effect(config)
            if repr(slurm) not in requests:
                validate(SlurmRequest, slurm, f"{path}, slurm")
                requests.add(repr(slurm))
        except ConfigError as error:
            problems += error.problems
            continue
        folder = f"{_slug(own)}-{run_id(config)}"
        runs.append(PlannedRun(own, config, folder, published, slurm))
    if problems:
        raise ConfigError(str(path), list(dict.fromkeys(problems)))
    if not runs:
        raise ConfigError(str(path), ["no run is left: exclude removes them all"])
    if equal := list(_equal_runs(runs)):
        more = [f"... and {len(equal) - MOST_NAMED:,} more"] if len(equal) > MOST_NAMED else []
        raise ConfigError(str(path), equal[:MOST_NAMED] + more)
    return tuple(runs)


def _equal_runs(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield a line for every run that has the id of an earlier one: it would be trained only once.

    Such runs differ in nothing, or only in what changes no result: `runtime.` and `slurm.` keys.
    """
    first: dict[str, PlannedRun] = {}
    for run in runs:
        one = first.setdefault(run.run_id, run)
        if one is not run:
            yield f"two settings give the same run {run.run_id}: {_shown(one)} and {_shown(run)}"


def _shown(run: PlannedRun) -> str:
    slurm = {f"{SLURM}{key}": value for key, value in run.slurm.items()}
    return ", ".join(f"{key}={value}" for key, value in {**run.settings, **slurm}.items())


def _split_slurm(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run, and those of its SLURM job without their prefix."""
    own = {key: value for key, value in settings.items() if not key.startswith(SLURM)}
    slurm = {k.removeprefix(SLURM): v for k, v in settings.items() if k.startswith(SLURM)}
    return own, slurm


def _combinations(
    file: SweepFile, path: Path, overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """List the combinations of `grid`, the pairs of `zip` and the seeds, but not the excluded."""
    axes = axes_of(file.grid, file.zip, file.seeds, overrides)
    count = math.prod(len(axis) for axis in axes)
    if count > MAX_RUNS:
        problem = f"{count:,} runs; a sweep has at most {MAX_RUNS:,}"
        raise ConfigError(str(path), [problem])
    # The rules of `exclude` see an override in place of the values that it replaces.
    return [c for c in product(axes) if not excluded({**c, **overrides}, file.exclude)]


def _published(
    file: SweepFile,
    path: Path,
    combinations: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any],
) -> list[float | None]:
    """Return a value for each combination; None if an override may change what was measured."""
    if file.published is None or any(not key.startswith(HARMLESS) for key in overrides):
        return [None] * len(combinations)
    values = file.published.values
    keys = [tuple((k, repr(v)) for k, v in c.items() if k != "seed") for c in combinations]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if len(number) != len(values):
        problem = f"published.values holds {counted(len(values), 'number')} "
        problem += f"for {counted(len(number), 'cell')}"
        raise ConfigError(str(path), [f"{problem}; write null where there is none"])
    return [values[number[key]] for key in keys]


def _slug(settings: Mapping[str, Any]) -> str:
    """Return the settings of a run as part of its folder's name, for people to read.

    The run id that follows identifies it.
    """
    parts = [f"{key.split('.')[-1]}={value}" for key, value in settings.items()]
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", ",".join(parts))[:120]
