"""What a replay is to do: which steps of a run, from which state, in which circumstances."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.found import found_events
from stabkit.config import ConfigError, RunConfig, read_config, run_id, suggest
from stabkit.event_kinds import EVENT_KINDS
from stabkit.monitor.ranks import world_size
from stabkit.printing import first_of
from stabkit.rundir import RunDir, kept_states
from stabkit.store.reader import StoredRun
from stabkit.train.checkpoint_file import check_trainable, read_checkpoint
from stabkit.train.request import config_with_threads

LEAD = 50  # steps before the onset, at least: unusual values are compared with these
NO_RUN = "is no run of `stabkit train` or `stabkit sweep`: only their steps can be made again"
EVALUATIONS = 4  # after the onset, at most, unless `until` says more: an event may have no end


class ReplayRefusedError(ConfigError):
    """The request was wrong; the message is one line."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(str(source), [problem])
        self.args = (f"{source}: {problem}",)


class ReplayPlan(NamedTuple):
    """Make the updates `start` to `end` - 1 again.

    `words`: what is replayed. `file`: the state at `start`; None for the start of the run.
    `states`: the files of later states, by step, to compare with. `damaged`: problems of states
    that were passed over. `attempt`: the entry of `meta.json` for the process that made step
    `start`. `later`: entries of processes that went on within the steps.
    """

    config: RunConfig
    words: str
    onset: int
    start: int
    end: int
    file: Path | None
    states: Mapping[int, Path]
    damaged: list[str]
    attempt: Mapping[str, Any]
    later: list[Mapping[str, Any]]


def make_plan(folder: Path, at: str, until: int | None = None) -> ReplayPlan:
    """Return what `stabkit replay FOLDER --at AT` has to do. Writes nothing.

    Raises ReplayRefusedError for a folder, an event or a step that cannot be replayed.
    """
    rundir = RunDir(folder)
    config = config_of(rundir)
    run, last = recorded(folder)
    event = find_event(run, at, last)
    onset, words = event.onset, event.words
    every = config.knn.every
    soon = min(event.end + every, onset + EVALUATIONS * every)
    end = min(soon if until is None else until, last + 1)
    if end <= onset:
        raise ReplayRefusedError(folder, f"--until {until} is not after step {onset}")
    start, file, later_states, damaged = states_before(rundir, config, max(0, onset - LEAD), end)
    if config.branch and file is None:
        raise ReplayRefusedError(
            folder, f"is a branch, and holds no state of its own before step {onset - LEAD}"
        )
    attempts = attempts_of(rundir)
    before = [a for a in attempts if a.get("first_step", 0) <= start] or attempts[:1]
    attempt = before[-1]
    if attempt.get("processes", 1) != world_size():
        words = other_processes(attempt.get("processes", 1), folder, "replay", at)
        raise ReplayRefusedError(folder, words)
    later = [a for a in attempts[attempts.index(attempt) + 1 :] if a.get("first_step", 0) < end]
    threads = attempt.get("threads")
    if isinstance(threads, int) and threads > 0:
        config = config_with_threads(config, threads)
    return ReplayPlan(
        config, words, onset, start, end, file, later_states, damaged, attempt, later
    )  # fmt: skip


def config_of(rundir: RunDir) -> RunConfig:
    if not rundir.config_file.is_file():
        raise ReplayRefusedError(rundir.path, "no run of `stabkit train`, it has no config.yaml")
    try:
        return read_config(rundir.config_file)
    except ConfigError:
        if not attempts_of(rundir):
            raise ReplayRefusedError(rundir.path, NO_RUN) from None
        raise


def attempts_of(rundir: RunDir) -> list[Mapping[str, Any]]:
    attempts = rundir.read_meta().get("attempts")
    found: list[Mapping[str, Any]] = (
        [a for a in attempts if isinstance(a, dict)] if isinstance(attempts, list) else []
    )
    if not found:
        raise ReplayRefusedError(rundir.path, NO_RUN)
    return found


class Event(NamedTuple):
    """What `--at` names; `kind` is `step` or one of EVENT_KINDS, `layer` where it began."""

    kind: str
    onset: int
    end: int
    words: str
    layer: str | None = None


def recorded(folder: Path) -> tuple[StoredRun, int]:
    """Return the run as it stands now and its last step. Raises ReplayRefusedError without one."""
    run = StoredRun(folder).as_of_now().keeping()
    last = run.scalars()["step"].max()
    if math.isnan(last):
        raise ReplayRefusedError(folder, "has recorded no step yet")
    return run, int(last)


def find_event(run: StoredRun, at: str, last: int) -> Event:
    """Return what `at` names: a step, `dip`, or `dip:2`. Raises ReplayRefusedError."""
    kind, _, number = at.partition(":")
    if at.isdecimal():
        step = int(at)
        if step > last:
            raise ReplayRefusedError(run.path, f"--at {at}: the last step recorded is {last}")
        return Event("step", step, step, f"step {step}")
    if kind not in EVENT_KINDS or (number and not number.isdecimal()):
        raise ReplayRefusedError(
            run.path,
            f"--at {at}: should be a step, a kind of event, or the second of them, as dip:2"
            + suggest(kind, list(EVENT_KINDS)),
        )
    events = found_events(Diagnosis(run), kind)
    if not len(events):
        found = found_events(Diagnosis(run))
        there = (
            f"events of the run: {_listed(found)}" if len(found) else "it has no event; give a step"
        )
        raise ReplayRefusedError(run.path, f"--at {at}: the run has no {kind}; {there}")
    if not number:
        one = events.loc[events["size"].fillna(0).idxmax()]
    elif 1 <= int(number) <= len(events):
        one = events.iloc[int(number) - 1]
    else:
        raise ReplayRefusedError(run.path, f"--at {at}: there are {_listed(events)}")
    onset, end = int(one["onset"]), int(one["end"])
    words = f"{kind} at steps {onset} to {end}"
    return Event(kind, min(onset, last), end, words, one.get("layer"))


def _listed(events: pd.DataFrame) -> str:
    numbers = events.groupby("kind").cumcount() + 1
    rows = zip(events["kind"], numbers, events["onset"], strict=True)
    words = [f"{kind}:{number} at step {onset}" for kind, number, onset in rows]
    return first_of(words, 8)


def states_before(
    rundir: RunDir, config: RunConfig, latest: int, end: int
) -> tuple[int, Path | None, dict[int, Path], list[str]]:
    """Return the newest sound state at or before step `latest`, and the files of those after it."""
    files = {state.step: state.path for state in kept_states(rundir.states_folder)}
    damaged: list[str] = []
    if rundir.checkpoint_file.exists():
        step = _step_of(rundir.checkpoint_file, config, damaged)
        if step is not None:
            files[step] = rundir.checkpoint_file
    start, file = 0, None
    for step in sorted((s for s in files if 0 < s <= latest), reverse=True):
        if _step_of(files[step], config, damaged) == step:
            start, file = step, files[step]
            break
    later = {
        step: path
        for step, path in sorted(files.items())
        if start < step <= end and step > latest and _step_of(path, config, damaged) == step
    }
    return start, file, later, damaged


def _step_of(file: Path, config: RunConfig, damaged: list[str]) -> int | None:
    """Return the step of a sound state of this run; None otherwise, with the problem told."""
    try:
        content = read_checkpoint(file)
        check_trainable(file, content)
    except (OSError, ValueError) as error:
        damaged.append(str(error))
        return None
    if content["run"] != run_id(config):
        damaged.append(f"{file}: belongs to run {content['run']}, not to {run_id(config)}")
        return None
    return int(content["step"])


def other_processes(processes: int, folder: Path, verb: str, at: str) -> str:
    """Say that a run was made by another number of processes, and the command for that number."""
    command = f"stabkit {verb} {folder} --at {at}"
    if processes == 1:
        return f"was made by 1 process, this is one of {world_size()}; use {command}"
    return (
        f"was made by {processes} processes, and other sums would be rounded otherwise; use "
        f"torchrun --nproc-per-node {processes} -m {command}"
    )
