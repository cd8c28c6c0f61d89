"""Compare two folders of runs, as text: `stabkit analyze A B`."""

import math
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from stabkit.analyze.cells import group_cells, hashable, label
from stabkit.analyze.compare import (
    Comparison,
    compare_apart,
    compare_pairs,
    in_words,
    pair_rows,
)
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.intervals import rates_p_value
from stabkit.analyze.scores import is_unstable, score
from stabkit.analyze.text import aligned, counted
from stabkit.analyze.verdict import VERDICTS
from stabkit.detect.dips import SHORTEST
from stabkit.detect.significance import holm
from stabkit.printing import one_line

ALPHA = 0.05


def compare_sets(first: Diagnoses, second: Diagnoses) -> str:
    """Return the verdict, what it rests on, and a table of the cells that both sets have.

    Two runs are partners if they have the same seed and the same value of every setting that varies
    in either set. A setting that is constant in both sets, but at different values, is what is
    compared. If there is no pair, the sets are compared as they are, and the text says so. Runs
    that are under way or have too few evaluations for a verdict are left out and counted.
    """
    shared = _varying(first, second)
    whole = [_frame(runs, shared) for runs in (first, second)]
    one, two = (frame[frame["judged"]] for frame in whole)
    left_out = sum(map(len, whole)) - len(one) - len(two)
    names = _names(first, second)
    if one.empty or two.empty:
        return _not_comparable(first, second, names, left_out)
    keys = _pairing(one, two, shared)
    kept = [_partnered(frame, other, keys) for frame, other in ((one, two), (two, one))]
    levels, lost = (_compare(kept, keys, column) for column in ("level", "lost_share"))
    dips = rates_p_value(*_rate(kept[1]), *_rate(kept[0]))
    parts = [
        _verdict(levels, dips, lost, kept, names),
        _head(first, second, names),
        _wrapped(_unjudged(left_out) + _matching(one, two, kept, shared, keys)),
        _wrapped(_watched(kept) + _twice(first, second)),
        _wrapped("Levels: " + in_words(levels, *names)),
        _stability(kept, names, dips, lost),
        _cells(first, second, kept, [key for key in keys if key != "seed"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _not_comparable(
    first: Diagnoses, second: Diagnoses, names: tuple[str, str], left_out: int
) -> str:
    """Say what is lacking, and the verdicts of each set for itself."""
    lines = [
        f"{names[1]} and {names[0]} cannot be compared, so nothing can be said: that takes runs "
        f"that ended\nand have {SHORTEST} evaluations of an accuracy, in both.",
        _wrapped(_unjudged(left_out)),
        "Each for itself:",
    ]
    for name, runs in zip(names, (first, second), strict=True):
        counts = pd.Series([run.verdict for run in runs]).value_counts()
        found = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if word in counts)
        lines.append(f"{name}: {found}")
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
    ended = [(status := run.run.status()) is None or status.state == "done" for run in runs]
    frame = pd.DataFrame(rows)
    share = 100 * frame["lost_steps"] / frame["steps"].where(frame["steps"] > 0)
    return frame.assign(lost_share=share, judged=(frame["verdict"] != "unknown") & np.array(ended))


def _unjudged(number: int) -> str:
    if not number:
        return ""
    return f"{counted(number, 'run')} left out: under way, or too few evaluations for a verdict. "


def _watched(kept: list[pd.DataFrame]) -> str:
    """Say so if the sets were watched for different numbers of steps."""
    steps = [rows["steps"].median() for rows in kept]
    if not all(steps) or abs(steps[1] - steps[0]) <= 0.02 * max(steps):
        return ""
    return f"They were watched for different numbers of steps: {steps[0]:,.0f} | {steps[1]:,.0f}. "


def _names(first: Diagnoses, second: Diagnoses) -> tuple[str, str]:
    short = [runs.path.resolve().name for runs in (first, second)]
    if short[0] == short[1]:
        short = [str(runs.path) for runs in (first, second)]
    here, there = map(one_line, short)
    return (here, there) if here != there else ("A", "B")


def _pairing(one: pd.DataFrame, two: pd.DataFrame, shared: list[str]) -> list[str]:
    """Return what pairs are formed over: seed and settings, else settings, else nothing."""
    if len(pair_rows(one, two, ["seed", *shared])):
        return ["seed", *shared]
    return shared if len(pair_rows(one, two, shared)) > 1 else []


def _partnered(rows: pd.DataFrame, others: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    if not keys:
        return rows
    theirs = set(map(tuple, others[keys].map(_comparable).to_numpy()))
    mine = map(tuple, rows[keys].map(_comparable).to_numpy())
    return rows[[key in theirs for key in mine]]


def _comparable(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _compare(kept: list[pd.DataFrame], keys: list[str], column: str) -> Comparison:
    one, two = kept
    if not keys:
        return compare_apart(one[column], two[column])
    pairs = pair_rows(one, two, keys, column)
    return compare_pairs(pairs["first"], pairs["second"])


def _rate(rows: pd.DataFrame) -> tuple[int, float]:
    known = rows[rows["verdict"] != "unknown"]
    return int(known["dips"].sum()), float(known["steps"].sum())


def _verdict(
    levels: Comparison,
    dips: float,
    lost: Comparison,
    kept: list[pd.DataFrame],
    names: tuple[str, str],
) -> str:
    """Answer three questions at 5 %, corrected for their number (Holm)."""
    questions = [levels.p_value, dips, lost.p_value]
    asked = [p for p in questions if not math.isnan(p)]
    answers = iter(holm(asked))
    corrected = [math.nan if math.isnan(p) else next(answers) for p in questions]
    rates = [events / steps if steps else math.nan for events, steps in map(_rate, kept)]
    effects = [levels.effect, rates[1] - rates[0], lost.effect]
    words = [("ends higher", "ends lower"), ("dips more often", "dips less often")]
    words.append(("spends more of its steps in dips", "spends less of its steps in dips"))
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


def _matching(
    one: pd.DataFrame,
    two: pd.DataFrame,
    kept: list[pd.DataFrame],
    shared: list[str],
    keys: list[str],
) -> str:
    settings = ", ".join(shared) or "no setting that varies"
    if not keys:
        return f"No run of one has a partner in the other (seed; {settings}): compared unpaired."
    left_out = len(one) - len(kept[0]) + len(two) - len(kept[1])
    over = "seed" if "seed" in keys else "no seed, so that each cell counts as its mean"
    text = f"Paired over {', '.join([over, *(key for key in keys if key != 'seed')])}"
    return f"{text}; {counted(left_out, 'run')} without a partner left out."


def _twice(first: Diagnoses, second: Diagnoses) -> str:
    """Count runs whose settings are all the same in both sets: they show no difference."""
    known = {_content(run) for run in first if run.settings}
    number = sum(_content(run) in known for run in second if run.settings)
    return f" {counted(number, 'run')} of the same settings throughout in both." if number else ""


def _content(run: Diagnosis) -> str:
    return repr([(k, v) for k, v in run.settings.items() if not k.startswith("runtime.")])


def _stability(
    kept: list[pd.DataFrame], names: tuple[str, str], dips: float, lost: Comparison
) -> str:
    lines = []
    for name, rows in zip(names, kept, strict=True):
        known = rows[rows["verdict"] != "unknown"]
        events, steps = _rate(rows)
        lines.append(
            f"{name}: {counted(events, 'dip')} in {steps:,.0f} steps, "
            f"{known['lost_steps'].sum():,.0f} of them in dips; "
            f"{is_unstable(known).sum()} of {counted(len(known), 'run')} unstable"
        )
    p = "cannot be tested" if math.isnan(dips) else f"p = {dips:.2g} (exact)"
    lines.append(f"Equal rates of dips: {p}.")
    low, high = lost.student
    if not math.isnan(low):
        lines.append(
            f"Steps in dips: {lost.effect:+.1f} % of a run's "
            f"(95 % interval {low:+.1f} to {high:+.1f})."
        )
    return "\n".join(lines)


def _cells(
    first: Diagnoses, second: Diagnoses, kept: list[pd.DataFrame], settings: list[str]
) -> str:
    """Return a table of the cells: level, dips, steps in dips, each as first | second."""
    told = _telling(first, second, settings)
    lines = [["cell", "runs", "level, %", "", "difference", "dips", "in dips", "unstable"]]
    cells = dict.fromkeys(map(tuple, kept[0][settings].map(_comparable).to_numpy()))
    for cell in sorted(cells, key=_order) if settings else [()]:
        one, two = (_of_cell(rows, settings, cell) for rows in kept)
        named = [label(k, v) for k, v in zip(settings, cell, strict=True) if k in told]
        means = [rows["level"].mean() for rows in (one, two)]
        lines.append(
            [
                ", ".join(named) or "all",
                f"{len(one)} | {len(two)}",
                f"{means[0]:.1f}",
                f"{means[1]:.1f}",
                f"{means[1] - means[0]:+.1f}",
                f"{one['dips'].sum()} | {two['dips'].sum()}",
                f"{one['lost_steps'].sum()} | {two['lost_steps'].sum()}",
                f"{is_unstable(one).sum()} | {is_unstable(two).sum()}",
            ]
        )
    return aligned(lines)


def _telling(first: Diagnoses, second: Diagnoses, settings: list[str]) -> set[str]:
    """Return the settings that name a cell, without those that follow from another."""
    named = (cell.settings for runs in (first, second) for cell in group_cells(runs))
    return {key for cell in named for key in cell} & set(settings)


def _of_cell(rows: pd.DataFrame, settings: list[str], cell: tuple[Any, ...]) -> pd.DataFrame:
    if not settings:
        return rows
    values = map(tuple, rows[settings].map(_comparable).to_numpy())
    return rows[[value == cell for value in values]]


def _order(cell: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    return [(0, float(v), "") if isinstance(v, (int, float)) else (1, 0.0, str(v)) for v in cell]
