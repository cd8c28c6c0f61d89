"""A sweep file -> an ordered list of cells. Pure: nothing is written, nothing is started."""

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
from stabkit.sweep.axes import axes_of, excluded, idle_rules, product
from stabkit.sweep.slurm_request import SlurmRequest

SLURM = "slurm."  # keys that say what a cell asks of a cluster, not what it is
MAX_CELLS = 10_000
MOST_TOLD = 20  # of pairs of cells that are one run: the cause of more is one and the same
# overrides that leave a cell the experiment that was published
HARMLESS = ("runtime.", "knn.", "data.path", "data.download", "seed")
Values = Annotated[list[Any], Field(min_length=1)]


class Published(Section):
    """What a paper reports for the cells, in their order without seeds; null where it has none."""

    source: str
    measure: str
    values: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)] | None], Field(min_length=1)
    ]


class SweepFile(Section):
    """What a sweep file says once a scale is chosen. Keys inside are dotted configuration keys."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    base: str
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Values] = Field(default_factory=dict)
    zip: dict[str, Values] = Field(default_factory=dict)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    published: Published | None = None
    slurm: SlurmRequest | None = None  # of every cell; `slurm.KEY` in set, grid or zip adds to it

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(f"zip pairs its lists item by item, but their lengths are {lengths}")
        twice = self.grid.keys() & self.zip.keys()
        if twice:
            raise ValueError(f"in both grid and zip: {', '.join(sorted(twice))}")
        known = [key for key in keys_of(RunConfig) if key != "seed"]
        known += keys_of(SlurmRequest, SLURM)
        used = [*self.set, *self.grid, *self.zip, *(key for rule in self.exclude for key in rule)]
        wrong = [f"{k}: no such setting{suggest(k, known)}" for k in used if k not in known]
        if wrong:
            raise ValueError("; ".join(dict.fromkeys(wrong)))
        varied = self.grid.keys() | self.zip.keys()
        if twice := self.set.keys() & varied:
            raise ValueError(f"in set and varied as well: {', '.join(sorted(twice))}")
        if problems := list(
            idle_rules(self.exclude, varied, axes_of(self.grid, self.zip, self.seeds, {}))
        ):
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: what is special about it, its whole configuration, its folder's name.

    `published` is what a paper reports for it; `slurm` what the sweep file asks of a cluster.
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
    name: str
    scale: str | None
    cells: tuple[Cell, ...]
    published: Published | None = None


def load_sweep(path: Path, scale: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Expand a sweep file at a scale: the first one it names, when None.

    Order is the file's: the last key of `grid` varies fastest but for the seeds. An override of a
    key that the file varies replaces all its values. Runs of another scale than the first go to a
    folder of their own. Raises ConfigError with everything that is wrong.
    """
    content = read_mapping(path)
    scales = _scales(path, content.pop("scales", {}))
    default = next(iter(scales), None)
    if scale is not None and scale not in scales:
        raise ConfigError(str(path), [f"no scale {scale!r}{suggest(scale, list(scales))}"])
    chosen = scale or default
    file = validate(SweepFile, content | (scales[chosen] if chosen else {}), str(path))
    cells = _expand(file, path, parse_overrides(overrides))
    name = file.name if chosen == default else f"{file.name}-{chosen}"
    return Sweep(name, chosen, cells, file.published)


def _scales(path: Path, scales: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(scales, dict) or not all(isinstance(s, dict) for s in scales.values()):
        raise ConfigError(str(path), ["scales: should map the name of each scale to its settings"])
    return scales


def _expand(file: SweepFile, path: Path, overrides: dict[str, Any]) -> tuple[Cell, ...]:
    fixed, asked = _apart(file.set)
    base = with_settings(read_base(file.base, path.parent), fixed)
    request = file.slurm.model_dump(exclude_unset=True) if file.slurm else {}
    cells, problems = [], []
    combinations = _combinations(file, path, overrides)
    for settings, published in zip(
        combinations, _published(file, path, combinations, overrides), strict=True
    ):
        own, asks = _apart(settings)
        slurm = request | asked | asks
        try:
            config = validate(RunConfig, with_settings(base, overrides | own), str(path))
            problems += without_effect(config)
            validate(SlurmRequest, slurm, f"{path}, slurm")
        except ConfigError as error:
            problems += error.problems
            continue
        folder = f"{_slug(own)}-{run_id(config)}"
        cells.append(Cell(own, config, folder, published, slurm))
    if problems:
        raise ConfigError(str(path), list(dict.fromkeys(problems)))
    if not cells:
        raise ConfigError(str(path), ["no cell is left: exclude takes them all"])
    if twice := list(_same_runs(cells)):
        more = [f"... and {len(twice) - MOST_TOLD:,} more"] if len(twice) > MOST_TOLD else []
        raise ConfigError(str(path), twice[:MOST_TOLD] + more)
    return tuple(cells)


def _same_runs(cells: Sequence[Cell]) -> Iterator[str]:
    """A line for every cell that is the run of one before it: it would be trained once, not twice.

    Such cells differ in nothing, or in what changes no result: `runtime.` and `slurm.` keys.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        one = first.setdefault(cell.run_id, cell)
        if one is not cell:
            yield f"two cells are one run, {cell.run_id}: {_words(one)} and {_words(cell)}"


def _words(cell: Cell) -> str:
    asks = {f"{SLURM}{key}": value for key, value in cell.slurm.items()}
    return ", ".join(f"{key}={value}" for key, value in {**cell.settings, **asks}.items())


def _apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a cell is, and what it asks of a cluster (without the prefix)."""
    own = {key: value for key, value in settings.items() if not key.startswith(SLURM)}
    asks = {k.removeprefix(SLURM): v for k, v in settings.items() if k.startswith(SLURM)}
    return own, asks


def _combinations(
    file: SweepFile, path: Path, overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every combination of the axes but the excluded: `grid`, the pairs of `zip`, the seeds."""
    axes = axes_of(file.grid, file.zip, file.seeds, overrides)
    count = math.prod(len(axis) for axis in axes)
    if count > MAX_CELLS:
        problem = f"{count:,} cells; at most {MAX_CELLS:,} make one sweep"
        raise ConfigError(str(path), [problem])
    # an override takes the place of a varied key, for the rules as well
    return [c for c in product(axes) if not excluded({**c, **overrides}, file.exclude)]


def _published(
    file: SweepFile,
    path: Path,
    combinations: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any],
) -> list[float | None]:
    """A value for each combination; none when an override may change what was measured."""
    if file.published is None or any(not key.startswith(HARMLESS) for key in overrides):
        return [None] * len(combinations)
    values = file.published.values
    keys = [tuple((k, repr(v)) for k, v in c.items() if k != "seed") for c in combinations]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if len(number) != len(values):
        problem = f"published.values holds {len(values)} numbers for {len(number)} cells"
        raise ConfigError(str(path), [f"{problem}; write null where there is none"])
    return [values[number[key]] for key in keys]


def _slug(settings: Mapping[str, Any]) -> str:
    """The settings of a cell as a folder's name: the hash behind it identifies, this explains."""
    parts = [f"{key.split('.')[-1]}={value}" for key, value in settings.items()]
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", ",".join(parts))[:120]
