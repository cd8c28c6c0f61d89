"""Choose the remedies that fit what was seen, and measure them on the runs at hand."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from stabkit.analyze.cells import Cell, group_cells, label
from stabkit.analyze.claims import Claim, Outcome, mean_above_zero
from stabkit.analyze.counts import ALPHA
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.intervals import TESTED, TOO_FEW
from stabkit.analyze.report.model_parts import is_own, parts_of
from stabkit.analyze.report.param_groups import Group
from stabkit.analyze.report.remedies import REMEDIES
from stabkit.analyze.report.remedy import Evidence, Part, Remedy, Sign
from stabkit.analyze.report.torch_lines import torch_lines, values_of
from stabkit.analyze.verdict import is_unstable
from stabkit.config import ConfigError, RunConfig, validate, with_settings
from stabkit.detect.significance import holm
from stabkit.printing import counted

HAS_IT = "the worst run has it already"
STEPS = ("train.steps", "optim.warmup_steps")


@dataclass(frozen=True)
class Pair:
    """Two runs that differ only in a remedy. Levels are in points, NaN without evaluations."""

    alike: str
    without: str
    with_it: str
    level_without: float
    level_with: float
    unstable_without: bool
    unstable_with: bool


@dataclass(frozen=True)
class Trial:
    """What runs that differ only in a remedy show of it.

    `corrected` is the p-value of the claim, corrected for all remedies that these runs test; NaN if
    there are too few pairs for a test, or runs of the pairs blew up (`blew_up`), so that only the
    survivors have a level. `unfinished` counts the other runs that have not ended.
    """

    pairs: tuple[Pair, ...]
    claim: Claim
    unfinished: int
    blew_up: int = 0
    corrected: float = math.nan

    @property
    def verdict(self) -> Outcome:
        """Whether the remedy ends higher, after the correction."""
        return self.claim.verdict if self.corrected <= ALPHA else "undecided"

    def words(self) -> str:
        n, claim = len(self.pairs), self.claim
        without = sum(pair.unstable_without for pair in self.pairs)
        with_it = sum(pair.unstable_with for pair in self.pairs)
        counts = (
            f"Unstable were {without} of {counted(n, 'run')} without and {with_it} of {n} with it."
        )
        if self.unfinished:
            counts += f" Left out: {counted(self.unfinished, 'unfinished run')}."
        if not claim.n:
            return f"{counts} No levels to compare."
        effect = f"{claim.effect:+.1f} points of final accuracy, n = {counted(claim.n, 'pair')}"
        if math.isnan(self.corrected):
            why = f"a test takes {TESTED} pairs" if claim.n < TESTED else "no spread to judge by"
            if self.blew_up:
                why = f"{counted(self.blew_up, 'unstable run')} broke off and has no final accuracy"
            return f"{effect}. {counts} Not decisive: {why}."
        interval = TOO_FEW
        if not math.isnan(claim.low):
            interval = f"95 % interval {claim.low:+.1f} to {claim.high:+.1f}"
        verdict = {
            "holds": "Decisive: it ends higher here.",
            "fails": "Decisive: it ends lower here.",
            "undecided": "Not decisive: it may be chance.",
        }[self.verdict]
        sure = f"p = {self.corrected:.2g} corrected for the number of remedies tested; {interval}"
        return f"{effect} ({sure}). {counts} {verdict}"

    def short(self) -> str:
        """Return the effect and the counts of unstable runs, in a few words."""
        n = len(self.pairs)
        without = sum(pair.unstable_without for pair in self.pairs)
        with_it = sum(pair.unstable_with for pair in self.pairs)
        counts = f"unstable {without} of {n} without, {with_it} with it"
        if not self.claim.n:
            return counts
        return f"{self.claim.effect:+.1f} points in {counted(self.claim.n, 'pair')} ({counts})"


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

    First come those that these runs decide for, then those for the signs seen, then the rest.
    Remedies that these runs decide against, and those that all runs have, come last. If no sign was
    seen, only those are returned that the runs themselves measure. If the worst run is not one of
    `stabkit train`, only those for the signs seen are.

    `table` is that of `run_table`; `signs` says how many runs show each sign; `worst` is the name
    of a run, in which the trouble began at step `onset`, in a layer of the parameter `groups`.
    """
    cells = group_cells(runs)
    bad = set(table.loc[is_unstable(table), "run"])
    run = next(run for run in runs if run.name == worst)
    own, parts = is_own(run), parts_of(run)
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
    config = shlex.quote(str(worst.run.dir.config_file))
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


def trials(remedies: Sequence[Remedy], cells: Sequence[Cell], bad: set[str]) -> list[Trial | None]:
    """Return the trial of each remedy, with p-values corrected for their number (Holm).

    `bad` names the runs that trained unstably.
    """
    found = [trial(remedy, cells, bad) for remedy in remedies]
    known = [t.claim.p_value for t in found if t and not math.isnan(t.claim.p_value)]
    corrected = iter(holm(known))
    return [
        replace(t, corrected=next(corrected)) if t and not math.isnan(t.claim.p_value) else t
        for t in found
    ]


def trial(remedy: Remedy, cells: Sequence[Cell], bad: set[str]) -> Trial | None:
    """Return pairs of runs that differ only in the remedy; None if there are none.

    Runs count that finished or blew up. The p-value is not corrected.
    """
    key, unfinished = remedy.key, 0
    groups: dict[tuple[Any, ...], dict[Any, tuple[str, Diagnosis]]] = {}
    for cell in cells:
        if key not in cell.settings:
            continue
        rest = {name: value for name, value in cell.settings.items() if name != key}
        for run in cell.runs:
            if not (run.finished or run.blew_up):
                unfinished += 1
                continue
            seed = run.settings.get("seed", 0)
            words = [*(label(name, value) for name, value in rest.items()), f"seed {seed}"]
            values = groups.setdefault((_others(run, key), seed), {})
            values[cell.settings[key]] = (", ".join(words), run)
    chosen = [(values, ends) for values in groups.values() if (ends := _ends(remedy, list(values)))]
    pairs = tuple(_pair(key, values, ends, bad) for values, ends in chosen)
    if not pairs:
        return None
    gains = [pair.level_with - pair.level_without for pair in pairs]
    claim = mean_above_zero(remedy.name, gains, "points")
    blew_up = sum(values[end][1].blew_up for values, ends in chosen for end in ends)
    if blew_up:
        claim = replace(claim, verdict="undecided", p_value=math.nan)
    return Trial(pairs, claim, unfinished, blew_up)


def _ends(remedy: Remedy, values: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the values of a run without the remedy and of one with it."""
    if remedy.toward == "value":
        wanted = remedy.settings[remedy.key]
        return (remedy.instead_of, wanted) if {wanted, remedy.instead_of} <= {*values} else None
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < 2:
        return None
    low, high = min(numbers), max(numbers)
    return (high, low) if remedy.toward == "less" else (low, high)


def _pair(
    key: str, values: Mapping[Any, tuple[str, Diagnosis]], ends: tuple[Any, Any], bad: set[str]
) -> Pair:
    (alike, without), (_, with_it) = (values[end] for end in ends)
    return Pair(
        alike=alike,
        without=label(key, ends[0]),
        with_it=label(key, ends[1]),
        level_without=_level(without),
        level_with=_level(with_it),
        unstable_without=without.name in bad,
        unstable_with=with_it.name in bad,
    )


def _level(run: Diagnosis) -> float:
    return 100 * run.level if run.finished else math.nan


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
    alike = _others(worst, remedy.key)
    stable: dict[float, bool] = {}
    for run in (run for cell in cells for run in cell.runs if _others(run, remedy.key) == alike):
        value = run.settings[remedy.key]
        stable[value] = stable.get(value, True) and run.finished and run.name not in bad
    farther = [
        value for value, all_were in stable.items()
        if all_were and (value - now) * (remedy.factor - 1) > 0
    ]  # fmt: skip
    return min(farther, key=lambda value: abs(value - now), default=None)


def _others(run: Diagnosis, key: str) -> tuple[tuple[str, str], ...]:
    """Return all settings but one, the seed, and those that change no result.

    With a batch go the numbers of steps, if all see the same number of images.
    """
    left_out = {key, "seed", *(STEPS if key == "train.batch" else ())}
    return tuple(
        (name, repr(value))
        for name, value in sorted(run.settings.items())
        if name not in left_out and not name.startswith("runtime.")
    )


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
