"""Compare two folders of runs, as text: `stabkit analyze A B`."""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stabkit.analyze.cells import hashable
from stabkit.analyze.compare import Comparison, compare_matched, in_words
from stabkit.analyze.counts import ALPHA, Counts, RateTest, rates_test
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.intervals import TOO_FEW
from stabkit.analyze.matching import cells_of, match_runs
from stabkit.analyze.scores import score
from stabkit.analyze.two_sets_cells import cell_table
from stabkit.analyze.verdict import UNSTABLE, counted_verdicts, is_unstable
from stabkit.detect.significance import holm
from stabkit.printing import counted, one_line


def compare_sets(first: Diagnoses, second: Diagnoses) -> str:
    """Return the verdict, what it rests on, and a table of the cells that both sets have.

    Two runs are partners if they have the same seed and the same value of every setting that varies
    in either set. A setting that is constant in both sets, but at different values, is what is
    compared. If half of a set or more have no partner, runs are not paired (`match_runs`), and the
    text says so. Runs that are under way, that broke off without a sign of instability, or that
    recorded nothing that could be judged, are left out and counted. The diagnosis' verdict says
    which runs are unstable; levels and dips are compared over the runs that have enough
    evaluations. A run that blew up has no level. Where some did, no verdict rests on the others'
    levels: the survivors of a set may end high because the rest did not.
    """
    shared = _varying(first, second)
    whole = [_frame(runs, shared) for runs in (first, second)]
    one, two = (frame[frame["judged"]] for frame in whole)
    left_out = sum(map(len, whole)) - len(one) - len(two)
    names = _names(first, second)
    if one.empty or two.empty:
        return _not_comparable(first, second, names, left_out)
    found = match_runs(one, two, shared)
    kept = [found.first, found.second]
    levels, lost = (compare_matched(found, column) for column in ("level", "lost_share"))
    blew_up = [int(rows["blew_up"].sum()) for rows in kept]
    tested = replace(levels, p_value=math.nan) if any(blew_up) else levels
    unstable = rates_test(*(_unstable(rows, found.within) for rows in kept))
    dips = rates_test(*(_dips(rows, found.within) for rows in kept))
    parts = [
        _verdict(unstable, tested, dips, lost, names),
        _wrapped(_watched(kept)),
        _head(first, second, names),
        _wrapped(_unjudged(left_out) + found.words),
        _wrapped(_twice(first, second)),
        _wrapped(_metrics(first, second, names)),
        _wrapped("Levels: " + in_words(levels, *names) + _survivors(blew_up, names)),
        _unstable_words(kept, names, unstable),
        _dips_words(kept, names, dips, lost),
        cell_table(first, second, kept, found.within),
    ]
    return "\n\n".join(part for part in parts if part)


def _not_comparable(
    first: Diagnoses, second: Diagnoses, names: tuple[str, str], left_out: int
) -> str:
    """Say what is lacking, and the verdicts of each set for itself."""
    lines = [
        _wrapped(
            f"{names[1]} and {names[0]} cannot be compared, so nothing can be said: it takes runs "
            "that ended and recorded an accuracy, a loss or gradient norms, in both."
        ),
        _wrapped(_unjudged(left_out)),
        "Each for itself:",
    ]
    for name, runs in zip(names, (first, second), strict=True):
        lines.append(f"{name}: {counted_verdicts(run.verdict for run in runs)}")
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 95, break_long_words=False, break_on_hyphens=False)


def _varying(first: Diagnoses, second: Diagnoses) -> list[str]:
    """Return the settings that vary within either set, in config order, without the seed."""
    keys = dict.fromkeys([*first.factors(), *second.factors()])
    return [key for key in keys if key != "seed"]


def _frame(runs: Diagnoses, shared: list[str]) -> pd.DataFrame:
    rows = [
        {"seed": run.settings.get("seed")}
        | {key: hashable(run.settings.get(key)) for key in shared}
        | score(run)
        for run in runs
    ]
    frame = pd.DataFrame(rows)
    seen = frame["on_accuracy"]
    share = 100 * frame["lost_steps"] / frame["steps"].where(frame["steps"] > 0)
    finished = np.array([run.finished for run in runs])
    blew_up = np.array([run.blew_up for run in runs])
    return frame.assign(
        level=frame["level"].where(seen & finished),
        lost_share=share.where(seen),
        blew_up=blew_up,
        judged=((seen | (frame["verdict"] != "unknown")) & finished) | blew_up,
    )


def _unjudged(number: int) -> str:
    if not number:
        return ""
    return (
        f"{counted(number, 'run')} left out: under way, broken off without a sign of instability, "
        "or too little recorded for a verdict. "
    )


def _survivors(blew_up: list[int], names: tuple[str, str]) -> str:
    """Say that levels compare what is left of a set, if runs of it blew up."""
    if not any(blew_up):
        return ""
    who = " and ".join(f"{n} of {name}" for n, name in zip(blew_up, names, strict=True) if n)
    return (
        f" Unstable runs that broke off have no level ({who}). So this compares the others, and no "
        "verdict rests on it."
    )


def _watched(kept: list[pd.DataFrame]) -> str:
    """Say so if the sets were watched for different numbers of steps."""
    steps = [rows.loc[rows["on_accuracy"], "steps"].fillna(0).median() for rows in kept]
    if not all(step > 0 for step in steps) or abs(steps[1] - steps[0]) <= 0.02 * max(steps):
        return ""
    return (
        f"They were watched for different numbers of steps, {steps[0]:,.0f} and {steps[1]:,.0f}: "
        "what ends lower may only have ended earlier."
    )


def _metrics(first: Diagnoses, second: Diagnoses, names: tuple[str, str]) -> str:
    """Warn where the accuracies of the two sets have different names."""
    here, there = (
        sorted({run.accuracy.metric for run in runs if len(run.accuracy.evals)})
        for runs in (first, second)
    )
    if not here or not there or here == there:
        return ""
    return (
        f"The levels are of different accuracies: {one_line(', '.join(here))} in {names[0]}, "
        f"{one_line(', '.join(there))} in {names[1]}. They compare only if both measure the same "
        "thing; `--metric NAME` chooses one that both have."
    )


def _names(first: Diagnoses, second: Diagnoses) -> tuple[str, str]:
    short = [runs.path.resolve().name for runs in (first, second)]
    if short[0] == short[1]:
        short = [str(runs.path) for runs in (first, second)]
    here, there = map(one_line, short)
    return (here, there) if here != there else ("A", "B")


def _dips(rows: pd.DataFrame, within: list[str]) -> Counts:
    known = rows[rows["on_accuracy"]]
    return Counts(known["dips"], known["exposure"], cells_of(known, within))


def _unstable(rows: pd.DataFrame, within: list[str]) -> Counts:
    known = rows[rows["verdict"] != "unknown"]
    return Counts(is_unstable(known).astype(int), None, cells_of(known, within))


def _verdict(
    unstable: RateTest,
    levels: Comparison,
    dips: RateTest,
    lost: Comparison,
    names: tuple[str, str],
) -> str:
    """Answer four questions at 5 %, corrected for their number (Holm).

    A question that these runs cannot answer is not asked.
    """
    counts = [math.nan if test.too_few else test.p_value for test in (unstable, dips)]
    questions = [counts[0], levels.p_value, counts[1], lost.p_value]
    asked = [p for p in questions if not math.isnan(p)]
    answers = iter(holm(asked))
    corrected = [math.nan if math.isnan(p) else next(answers) for p in questions]
    effects = [unstable.excess, levels.effect, dips.excess, lost.effect]
    words = [
        ("is unstable more often", "is unstable less often"),
        ("ends higher", "ends lower"),
        ("dips more often", "dips less often"),
        ("spends more of its steps in dips", "spends less of its steps in dips"),
    ]
    said = [
        word[effect < 0] + f" (p = {p:.2g})"
        for p, effect, word in zip(corrected, effects, words, strict=True)
        if p <= ALPHA
    ]
    note = f"; p corrected for {counted(len(asked), 'question')}" if said and len(asked) > 1 else ""
    if said:
        return f"{names[1]} {', '.join(said)} than {names[0]}{note}."
    if not asked:
        return f"Too few runs, or all alike: nothing can be said about {names[1]} and {names[0]}."
    return f"No difference between {names[1]} and {names[0]} is shown. There may still be one."


def _head(first: Diagnoses, second: Diagnoses, names: tuple[str, str]) -> str:
    lines = [
        f"{name}: {counted(len(runs), 'run')} in {one_line(runs.path)}"
        for name, runs in zip(names, (first, second), strict=True)
    ]
    told = [one_line(f"{key}: {here} | {there}") for key, here, there in _constants(first, second)]
    return "\n".join([*lines, *(told or ["No setting sets them apart as a whole."])])


def _constants(first: Diagnoses, second: Diagnoses) -> Iterable[tuple[str, Any, Any]]:
    """Yield the settings that have one value in each set, but not the same one."""
    if not (len(first) and len(second)):
        return
    varying = {*_varying(first, second), "seed"}
    here, there = first.items[0].settings, second.items[0].settings
    for key in dict.fromkeys([*here, *there]):
        if key.startswith("runtime.") or key in varying or here.get(key) == there.get(key):
            continue
        yield key, here.get(key, "not set"), there.get(key, "not set")


def _twice(first: Diagnoses, second: Diagnoses) -> str:
    """Count runs whose settings are all the same in both sets: they show no difference."""
    known = {_content(run) for run in first if run.settings}
    number = sum(_content(run) in known for run in second if run.settings)
    return f"In both sets, with all settings the same: {counted(number, 'run')}." if number else ""


def _content(run: Diagnosis) -> str:
    return repr([(k, v) for k, v in run.settings.items() if not k.startswith("runtime.")])


def _unstable_words(kept: list[pd.DataFrame], names: tuple[str, str], test: RateTest) -> str:
    """Say how many runs of each set are unstable, by the verdict of their diagnosis."""
    lines = []
    for name, rows in zip(names, kept, strict=True):
        known = rows.loc[rows["verdict"] != "unknown", "verdict"]
        number = int(known.isin(UNSTABLE).sum())
        lines.append(
            f"{name}: {number} of {counted(len(known), 'run')} unstable ({counted_verdicts(known)})"
        )
    if test.smallest < 1:  # else all runs are alike, and nothing could be shown
        lines.append(f"Equal shares of unstable runs: {test.words()}.")
    return "\n".join(lines)


def _dips_words(
    kept: list[pd.DataFrame], names: tuple[str, str], dips: RateTest, lost: Comparison
) -> str:
    """Say how often each set dips; nothing if no run has enough evaluations to find a dip."""
    seen = [rows[rows["on_accuracy"]] for rows in kept]
    if all(rows.empty for rows in seen):
        return "Dips: no run has enough evaluations of an accuracy to find one."
    lines = [
        f"{name}: {counted(int(rows['dips'].sum()), 'dip')} in {rows['exposure'].sum():,.0f} "
        f"steps outside of dips, {rows['lost_steps'].sum():,.0f} steps in dips"
        for name, rows in zip(names, seen, strict=True)
    ]
    lines.append(f"Equal rates of dips: {dips.words()}.")
    low, high = lost.interval
    if not math.isnan(lost.p_value):
        sure = f"95 % interval {low:+.1f} to {high:+.1f}" if not math.isnan(low) else TOO_FEW
        more = "more" if lost.effect > 0 else "less"
        lines.append(
            f"{names[1]} spends {abs(lost.effect):.1f} % {more} of a run's steps in dips than "
            f"{names[0]} (p = {lost.p_value:.2g}; {sure})."
        )
    return "\n".join(lines)
