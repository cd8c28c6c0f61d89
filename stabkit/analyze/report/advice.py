"""Choose the remedies that fit what was seen."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stabkit.analyze.cells import Cell, group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.report.model_parts import has_own_settings, parts_of
from stabkit.analyze.report.param_groups import Group
from stabkit.analyze.report.remedies import REMEDIES
from stabkit.analyze.report.remedy import Evidence, Part, Remedy, Sign
from stabkit.analyze.report.remedy_trials import Trial, settings_but, trials
from stabkit.analyze.report.torch_lines import torch_lines, values_of
from stabkit.analyze.verdict import is_unstable
from stabkit.config import ConfigError, RunConfig, validate, with_settings

HAS_IT = "the worst run has it already"


@dataclass(frozen=True)
class Advice:
    """A remedy for these runs.

    `lines` are what to change: settings of our own runs, torch for others. `command` trains the
    worst run again with the remedy; None if it cannot. `score` is 0 if none of the signs that it is
    for was seen. `in_use` counts the runs that have it. `supports` and `opposes` hold the evidence
    that concerns the model at hand.
    """

    remedy: Remedy
    score: float
    seen: tuple[Sign, ...]
    in_use: int
    lines: str
    command: str | None
    why_not: str
    trial: Trial | None
    supports: tuple[Evidence, ...]
    opposes: tuple[Evidence, ...]


def advise(
    runs: Diagnoses,
    table: pd.DataFrame,
    signs: Mapping[Sign, int],
    worst: str,
    onset: int | None = None,
    groups: Sequence[Group] = (),
) -> list[Advice]:
    """Return the remedies that make sense for the worst run, ordered by how well they fit.

    The order:

    1. remedies that these runs show to help,
    2. remedies for the signs seen,
    3. the rest,
    4. remedies that these runs show to harm, and those that all runs have already.

    Without a sign only the remedies are returned that some of these runs have and others lack. If
    the worst run is not one of `stabkit train`, only those for the signs seen are returned.

    `table` is that of `run_table`; `signs` says how many runs show each sign; `worst` is the name
    of a run, in which the trouble began at step `onset`, in a layer of the parameter `groups`.
    """
    cells = group_cells(runs)
    bad = set(table.loc[is_unstable(table), "run"])
    run = next(run for run in runs if run.name == worst)
    own, parts = has_own_settings(run), parts_of(run)
    values = {} if own else values_of(run, onset, groups)
    found = []
    for remedy, tried in zip(REMEDIES, trials(REMEDIES, cells, bad), strict=True):
        seen = tuple(sign for sign in remedy.answers if signs.get(sign))
        wanted = bool(seen) or (own and any(signs.values()))
        makes_sense = parts.issuperset(remedy.needs) and (remedy.settings or not own)
        supports = _concerning(remedy.supports, parts, own)
        if tried or (wanted and makes_sense and supports):
            advice = (
                _of_settings(remedy, runs, run, cells, bad) if own else _of_torch(remedy, values)
            )
            score = sum(remedy.answers[sign] * signs[sign] for sign in seen) / max(len(runs), 1)
            found.append(
                Advice(
                    remedy, score, seen, **advice, trial=tried, supports=supports,
                    opposes=_concerning(remedy.opposes, parts, own),
                )
            )  # fmt: skip
    return sorted(found, key=lambda advice: (_class(advice, len(runs)), -advice.score))


def _concerning(
    evidence: Sequence[Evidence], parts: Collection[Part], own: bool
) -> tuple[Evidence, ...]:
    return tuple(item for item in evidence if own or item.about is None or item.about in parts)


def _of_settings(
    remedy: Remedy, runs: Diagnoses, worst: Diagnosis, cells: Sequence[Cell], bad: set[str]
) -> dict[str, Any]:
    """Return what to change in a run of `stabkit train`."""
    settings = _override(remedy, worst.settings)
    if (measured := _measured(remedy, cells, worst, bad)) is not None:
        settings = {remedy.key: measured}
    override = " ".join(f"{key}={_yaml(value)}" for key, value in settings.items())
    why_not = HAS_IT if _has(remedy, worst.settings) else _refusal(worst, settings)
    config = shlex.quote(str(worst.stored.dir.config_file))
    return {
        "lines": override,
        "command": None if why_not else f"stabkit train {config} {override}",
        "why_not": why_not,
        "in_use": sum(_has(remedy, run.settings) for run in runs),
    }


def _of_torch(remedy: Remedy, values: Mapping[str, str]) -> dict[str, Any]:
    """Return what to change in anybody's loop."""
    return {"lines": torch_lines(remedy, values), "command": None, "why_not": "", "in_use": 0}


def _class(advice: Advice, runs: int) -> int:
    if advice.in_use == runs:
        return 3
    verdict = advice.trial.verdict if advice.trial else "undecided"
    if verdict == "fails":
        return 2
    return 0 if verdict == "holds" else 1


def _has(remedy: Remedy, settings: Mapping[str, Any]) -> bool:
    value, now = remedy.settings.get(remedy.key), settings.get(remedy.key)
    own = bool(settings) and now is None and settings.get("method.name") in remedy.own_of
    return own or (value is not None and now == value)


def _override(remedy: Remedy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the remedy. A factor is applied to the run's own value."""
    if remedy.factor is None:
        return dict(remedy.settings)
    now = settings.get(remedy.key)
    if not isinstance(now, (int, float)):
        return {remedy.key: None}
    if not now:  # a factor does not change a warm-up of 0 steps: use a tenth of the run
        return {remedy.key: max(1, settings.get("train.steps", 10) // 10)}
    changed = now * remedy.factor
    return {remedy.key: max(2, int(changed)) if isinstance(now, int) else float(f"{changed:.6g}")}


def _measured(
    remedy: Remedy, cells: Sequence[Cell], worst: Diagnosis, bad: set[str]
) -> float | None:
    """Return the value nearest to that of the worst run with which all such runs were stable.

    `bad` names the unstable runs. None for a remedy that is no factor, and without such a value.
    """
    now = worst.settings.get(remedy.key)
    if remedy.factor is None or not isinstance(now, (int, float)):
        return None
    alike = settings_but(worst, remedy.key)
    stable: dict[float, bool] = {}
    for run in (
        run for cell in cells for run in cell.runs if settings_but(run, remedy.key) == alike
    ):
        value = run.settings[remedy.key]
        stable[value] = stable.get(value, True) and run.finished and run.name not in bad
    farther = [
        value for value, all_were in stable.items()
        if all_were and (value - now) * (remedy.factor - 1) > 0
    ]  # fmt: skip
    return min(farther, key=lambda value: abs(value - now), default=None)


def _yaml(value: Any) -> str:
    if value is None:
        return "…"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refusal(run: Diagnosis, settings: Mapping[str, Any]) -> str:
    """Say why the run cannot be trained with the settings; empty if it can."""
    content = with_settings({}, {**run.settings, **settings})
    try:
        validate(RunConfig, content, run.name)
    except ConfigError as error:
        return "; ".join(error.problems)
    return ""
