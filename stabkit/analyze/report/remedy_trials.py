"""Measure remedies on the runs at hand: pairs of runs that differ only in a remedy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from stabkit.analyze.cells import Cell, label
from stabkit.analyze.claims import Claim, Outcome, mean_above_zero
from stabkit.analyze.counts import ALPHA
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.intervals import TESTED, TOO_FEW
from stabkit.analyze.report.remedy import Remedy
from stabkit.detect.significance import holm
from stabkit.printing import counted

# Pairs that each of several remedies takes. Holm's correction takes Student's test far into its
# tail, where three pairs err in 16 % of cases at 5 % if runs collapse now and then.
OF_SEVERAL = 4
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
    there are too few pairs for a test (`needed`), or runs of the pairs blew up (`blew_up`), so that
    only the survivors have a level. `unfinished` counts the other runs that have not ended.
    """

    pairs: tuple[Pair, ...]
    claim: Claim
    unfinished: int
    blew_up: int = 0
    corrected: float = math.nan
    needed: int = TESTED

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
            why = f"a test takes {self.needed} pairs"
            if self.needed > TESTED:
                why += " where several remedies are tested"
            if claim.n >= self.needed:
                why = "no spread to judge by"
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


def trials(remedies: Sequence[Remedy], cells: Sequence[Cell], bad: set[str]) -> list[Trial | None]:
    """Return the trial of each remedy, with p-values corrected for their number (Holm).

    `bad` names the runs that trained unstably. If there are several, each takes `OF_SEVERAL` pairs.
    """
    found = [trial(remedy, cells, bad) for remedy in remedies]
    if sum(t is not None for t in found) > 1:
        found = [t and replace(t, needed=OF_SEVERAL) for t in found]

    def tested(one: Trial | None) -> bool:
        return one is not None and one.claim.n >= one.needed and one.claim.p_value >= 0

    corrected = iter(holm([t.claim.p_value for t in found if t and tested(t)]))
    return [replace(t, corrected=next(corrected)) if t and tested(t) else t for t in found]


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
        unnamed = count()
        for run in cell.runs:
            if not (run.finished or run.blew_up):
                unfinished += 1
                continue
            # Runs that record no seed are alike, so any two of them make a pair.
            seed = run.settings.get("seed", next(unnamed))
            words = [*(label(name, value) for name, value in rest.items()), f"seed {seed}"]
            values = groups.setdefault((settings_but(run, key), seed), {})
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
    return 100 * run.accuracy.level if run.finished else math.nan


def settings_but(run: Diagnosis, key: str) -> tuple[tuple[str, str], ...]:
    """Return all settings but one, the seed, and those that change no result.

    With a batch go the numbers of steps, if all see the same number of images.
    """
    left_out = {key, "seed", *(STEPS if key == "train.batch" else ())}
    return tuple(
        (name, repr(value))
        for name, value in sorted(run.settings.items())
        if name not in left_out and not name.startswith("runtime.")
    )
