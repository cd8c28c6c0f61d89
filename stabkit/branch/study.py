"""The plan of a branch study: which event of which run, and every branch. Writes nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.branch.interventions import READY, Around, Intervention, chosen, ready
from stabkit.branch.judge.measured import KINDS
from stabkit.branch.protocol import LEAD, PLACEBOS, REPLICATES, SHAMS
from stabkit.branch.shams import Tensors, shams
from stabkit.config import ComputeConfig, ConfigError, RunConfig, run_id, validate, with_settings
from stabkit.monitor.layers import group_layers
from stabkit.monitor.ranks import world_size
from stabkit.replay.plan import (
    Event,
    ReplayRefusedError,
    attempts_of,
    config_of,
    find_event,
    other_processes,
    recorded,
)
from stabkit.rundir import RunDir
from stabkit.store.reader import StoredRun
from stabkit.train.request import config_with_threads
from stabkit.train.state import build_state

AFTER = 4  # evaluations after the end of the event, at least
AFTER_STEP = 20  # evaluations after a step that is no event
MOST = 40  # evaluations after the onset, at most: a dip that never ends would train to the end
TELLING = ("freeze", "reset_moments", "beta2")  # what --quick tries: one of each family


class Size(NamedTuple):
    """How many shams, how many replicates of an intervention, and which of those that are ready."""

    shams: int
    replicates: int
    names: Sequence[str]


QUICK, FULL = Size(SHAMS, REPLICATES, TELLING), Size(SHAMS, 6, READY)


class Branch(NamedTuple):
    """One branch; `settings` are dotted keys that differ from the parent's, without the kick."""

    name: str
    kind: str  # control, placebo, sham or intervention
    change: str
    family: str
    begin: int
    replicate: int
    settings: Mapping[str, Any]


class BranchStudy(NamedTuple):
    """What `stabkit branch` has to do.

    `config`: the parent's, with the number of threads that it had. `left_out`: ready interventions
    that make no sense for it, with the reason. `at`: the words of the request.
    """

    parent: Path
    config: RunConfig
    at: str
    event: Event
    bottom: int
    horizon: int
    branches: tuple[Branch, ...]
    left_out: Mapping[str, str]

    @property
    def begins(self) -> list[int]:
        """The steps at which branches begin: first that of the interventions, then the others."""
        return list(dict.fromkeys(branch.begin for branch in self.branches))


def plan_study(
    folder: Path,
    at: str,
    size: Size = QUICK,
    words: Sequence[str] = (),
    begins: Sequence[int] = (),
    until: int | None = None,
) -> BranchStudy:
    """Return the study of an event of the run in `folder`.

    `words`: interventions instead of those of `size`. `begins`: steps at which branches begin;
    interventions and shams at the first, only controls and placebos at the others. Raises
    ConfigError with what is wrong.
    """
    rundir = RunDir(folder)
    config = _with_its_threads(rundir, at)
    run, last = recorded(folder)
    event = find_event(run, at, last)
    if event.kind not in KINDS:
        raise ReplayRefusedError(
            folder, f"--at {at}: no branch is judged by a {event.kind}; by {', '.join(KINDS)}"
        )
    horizon = _horizon(folder, config, event, last + 1, until)
    every = config.knn.every
    if not begins:
        begins = [max(0, (event.onset - LEAD * every) // every * every)]
    if wrong := [step for step in begins if not 0 <= step <= event.onset]:
        raise ReplayRefusedError(
            folder, f"--from {wrong[0]}: should be a step from 0 to the onset, {event.onset}"
        )
    tensors = _tensors(config)
    patch = [
        n for n, one in zip(tensors.names, tensors.layers, strict=True) if one == "patch_embed"
    ]
    around = Around(begins[0], event.onset, every, patch)
    there, left_out = ready(config, around)
    wanted = [one for one in there if one.name in size.names]
    if words:
        wanted, left_out = chosen(words, config, around), {}
    left_out = {name: why for name, why in left_out.items() if name in size.names}
    suspects = ["patch_embed", *(event.layer or "").split(", ")]
    begins = list(dict.fromkeys(begins))
    branches = _branches(wanted, around, tensors, suspects, size, config, begins)
    study = BranchStudy(
        folder, config, at, event, _bottom(run, event), horizon, branches, left_out
    )  # fmt: skip
    for branch in branches:
        config_of_branch(study, branch, 1.0)  # what is wrong is told before anything begins
    return study


def _with_its_threads(rundir: RunDir, at: str) -> RunConfig:
    config = config_of(rundir)
    if config.branch is not None:
        raise ReplayRefusedError(rundir.path, "is a branch itself; name its parent")
    last = attempts_of(rundir)[-1]
    if (processes := last.get("processes", 1)) != world_size():
        raise ReplayRefusedError(rundir.path, other_processes(processes, rundir.path, "branch", at))
    threads = last.get("threads")
    if isinstance(threads, int) and threads > 0:
        return config_with_threads(config, threads)
    return config


def _horizon(
    folder: Path, config: RunConfig, event: Event, recorded: int, until: int | None
) -> int:
    """Return the step before which branches stop; the parent's rows up to there can be compared."""
    every = config.knn.every
    last = recorded if recorded == config.train.steps else recorded // every * every
    if until is None:
        after = max(AFTER * every, event.end - event.onset)
        wanted = event.end + (AFTER_STEP * every if event.kind == "step" else after)
        wanted = min(-(-wanted // every) * every, event.onset + MOST * every)
        horizon = min(wanted, last)
    elif until > last:
        raise ReplayRefusedError(folder, f"--until {until}: is recorded up to step {last}")
    else:
        horizon = until
    if horizon < event.onset + 2 * every and horizon < config.train.steps:
        raise ReplayRefusedError(
            folder,
            f"{event.words}: branches would stop at step {horizon}; two evaluations after the "
            f"onset are needed, so step {event.onset + 2 * every}",
        )
    if horizon <= event.onset:
        raise ReplayRefusedError(folder, f"{event.words}: the run ends there")
    return horizon


def _bottom(run: StoredRun, event: Event) -> int:
    if event.kind != "dip":
        return event.onset
    dips = Diagnosis(run).accuracy.dips
    return int(dips.loc[dips["onset"] == event.onset, "trough"].iloc[0])


def _tensors(config: RunConfig) -> Tensors:
    """Return the parameters that the run trains."""
    plain = config.model_copy(update={"compute": ComputeConfig()})
    try:
        model = build_state(plain, 1, torch.device("cpu"), num_classes=2).model.online
    except ValueError as error:
        raise ConfigError("model", [str(error)]) from None
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers, number = group_layers([name for name, _ in named])
    names, sizes = [name for name, _ in named], [p.numel() for _, p in named]
    return Tensors(names, sizes, [layers[i] for i in number])


def _branches(
    interventions: Sequence[Intervention],
    around: Around,
    tensors: Tensors,
    suspects: Sequence[str],
    size: Size,
    config: RunConfig,
    begins: Sequence[int],
) -> tuple[Branch, ...]:
    found: list[Branch] = []

    def add(name: str, kind: str, begin: int, replicate: int, *change: Any) -> None:
        words, family, settings = change or ("", "", {})
        # a placebo's nudge makes replicates differ; each branch has one of its own
        nudge = {} if kind == "control" else {"branch.nudge": len(found)}
        found.append(Branch(name, kind, words, family, begin, replicate, {**settings, **nudge}))

    several = len(begins) > 1
    for begin in begins:
        at = f"-at-{begin}" * several
        add(f"control{at}", "control", begin, 0)
        for i in range(PLACEBOS):
            add(f"placebo-{i}{at}", "placebo", begin, i)
    numbers: dict[str, int] = {}
    made = shams(size.shams, interventions, around, tensors, suspects, config.seed)
    for sham in made if interventions else []:
        number = numbers[sham.family] = numbers.get(sham.family, -1) + 1
        name = f"sham-{sham.family}-{number}"
        add(name, "sham", begins[0], number, sham.change, sham.family, sham.settings)
    for one in interventions:
        for i in range(size.replicates):
            add(
                f"{one.name}-{i}",
                "intervention",
                begins[0],
                i,
                one.change,
                one.family,
                one.settings,
            )
    return tuple(found)


def config_of_branch(study: BranchStudy, branch: Branch, kick: float | None) -> RunConfig:
    """Return the configuration of a branch; `kick` is the size of the shams of that family.

    Raises ConfigError.
    """
    settings = dict(branch.settings)
    if branch.kind == "sham" and branch.family == "kick":
        settings["branch.kick"] = kick
    facts = {
        "branch.parent": run_id(study.config),
        "branch.step": branch.begin,
        "branch.end": study.horizon,
        "branch.change": branch.change or branch.kind,
        "runtime.keep_states": 0,
    }
    content = study.config.model_dump() | {"branch": {}}
    return validate(RunConfig, with_settings(content, facts | settings), branch.name)


def folder_of(branch: Branch, config: RunConfig) -> str:
    """Return the name of a branch's folder; it ends in the run id, as that of every run."""
    return f"{branch.name}-{run_id(config)}"
