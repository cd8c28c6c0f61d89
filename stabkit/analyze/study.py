"""What the analyses of all studies share: the levels of their runs, and claims about them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd

from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.claims import Claim, from_comparison, more_events
from stabkit.analyze.compare import compare_matched
from stabkit.analyze.counts import Counts
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.intervals import share_test
from stabkit.analyze.matching import cells_of, match_runs
from stabkit.analyze.scores import exposure
from stabkit.analyze.text import aligned
from stabkit.printing import counted

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class PublishedCell(Protocol):
    """A cell of a sweep and what a paper reports for it."""

    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def published(self) -> float | None: ...


def levels(runs: Diagnoses, factors: Sequence[str]) -> pd.DataFrame:
    """Return one row per run that came to its end, with what a study compares.

    Columns: run, seed, `factors`, arm (the factors in words), level, sag, dips, exposure,
    collapsed. `level` is the median of the last fifth of the evaluations, in points (100 times the
    accuracy). `sag` is how far it lies below the highest median of as many evaluations in a row.
    `exposure` is the number of steps outside of dips. `attrs["unfinished"]` counts the runs left
    out: the accuracy of half a training is no level. A run of `stabkit train` that diverged is
    done. One whose own loop raised is not, and is left out. A log without a status is taken as it
    is.
    """
    rows = []
    for run in (run for cell in group_cells(runs) for run in cell.runs):
        if not run.finished:
            continue
        settings = {key: run.settings.get(key) for key in factors}
        row = {"run": run.name, "seed": run.settings.get("seed", 0), **settings}
        found = run.accuracy
        sag = 100 * (found.best - found.level)
        row |= {"arm": arm(settings), "level": 100 * found.level, "sag": sag}
        row |= {"dips": len(found.dips), "exposure": exposure(run)}
        rows.append(row | {"collapsed": len(run.collapses) > 0})
    head = ["run", "seed", *factors, "arm", "level", "sag", "dips", "exposure", "collapsed"]
    table = pd.DataFrame(rows, columns=head)
    table.attrs["unfinished"] = len(runs) - len(rows)
    return table


def arm(settings: Mapping[str, Any]) -> str:
    """Return the settings of an arm in words."""
    return ", ".join(label(key, value) for key, value in settings.items())


def published(cells: Iterable[PublishedCell], factors: Sequence[str], measure: str) -> pd.Series:
    """Return what a paper reports, by arm, named by its measure; empty if it reports nothing."""
    found = {
        arm({k: cell.settings[k] for k in factors if k in cell.settings}): cell.published
        for cell in cells
        if cell.published is not None
    }
    return pd.Series(found, dtype=float, name=measure)


def arms_in_order(table: pd.DataFrame, paper: pd.Series) -> list[str]:
    """Return the arms of `levels`: first those that the paper has, in its order.

    Others that differ in numbers alone are in the order of these.
    """
    told, arms = list(paper.index), list(dict.fromkeys(table["arm"]))
    words = [NUMBER.sub("", arm) for arm in arms]

    def place(arm: str) -> tuple[float, int, list[float]]:
        rank = told.index(arm) if arm in told else math.inf
        return rank, words.index(NUMBER.sub("", arm)), [float(x) for x in NUMBER.findall(arm)]

    return sorted(arms, key=place)


def study_table(table: pd.DataFrame, paper: pd.Series) -> str:
    """Return two tables as text: what our runs show of each arm, and what the paper reports.

    They stand apart because settings, data and measure differ: only the order of the arms compares.
    Both have the arms that they share in the same order.
    """
    rows = [["here", "level, %", "sd", "runs", "dips", "collapsed"]]
    for name in arms_in_order(table, paper):
        runs = table[table["arm"] == name]
        spread = f"{runs['level'].std():.1f}" if len(runs) > 1 else "-"
        counts = [str(len(runs)), str(runs["dips"].sum()), str(runs["collapsed"].sum())]
        rows.append([name, f"{runs['level'].mean():.1f}", spread, *counts])
    text = aligned(rows)
    if unfinished := table.attrs.get("unfinished", 0):
        text += f"\nLeft out, not finished: {counted(unfinished, 'run')}."
    if paper.empty:
        return text
    reported = [["paper", str(paper.name)], *([str(k), f"{v:.1f}"] for k, v in paper.items())]
    return f"{text}\n\n{aligned(reported)}"


def higher(
    text: str,
    table: pd.DataFrame,
    better: Mapping[str, Any],
    worse: Mapping[str, Any],
    column: str = "level",
    pairs: Sequence[str] = ("seed",),
) -> Claim:
    """Judge the claim that runs with the settings `better` have more of `column`.

    Runs are paired over `pairs`, which hold `seed`, if most of them have partners (`match_runs`);
    else the claim says how they were compared. Runs that agree in all of `pairs` count as their
    mean. Runs of a single seed decide nothing: another seed may differ from it in all settings.
    """
    settings = [key for key in pairs if key != "seed"]
    found = match_runs(_chosen(table, worse), _chosen(table, better), settings)
    note = "" if found.whole else found.words.rstrip(".")
    claim = from_comparison(text, compare_matched(found, column), "points", note)
    if len({*found.first["seed"], *found.second["seed"]}) != 1:
        return claim
    notes = [claim.note, "of one seed, so undecided"]
    return replace(claim, verdict="undecided", note="; ".join(filter(None, notes)))


def dip_more(
    text: str,
    table: pd.DataFrame,
    more: Mapping[str, Any],
    less: Mapping[str, Any],
    within: Sequence[str] = (),
) -> Claim:
    """Judge the claim that runs with the settings `more` have more dips, per exposure.

    Whole runs are exchanged between the arms, those of equal settings `within` (`rates_test`).
    """
    rows = [_chosen(table, settings) for settings in (more, less)]
    return more_events(text, *(Counts(r["dips"], r["exposure"], cells_of(r, within)) for r in rows))


def more_runs(
    text: str,
    table: pd.DataFrame,
    events: pd.DataFrame,
    more: Mapping[str, Any],
    less: Mapping[str, Any],
) -> Claim:
    """Judge the claim that more of the runs with the settings `more` have an event.

    `events`: one row for each, with the name of its run in column run. A run with several counts
    once.
    """
    arms = [_chosen(table, settings)["run"] for settings in (more, less)]
    return more_events(text, *(Counts(runs.isin(events["run"])) for runs in arms))


def shares_table(table: pd.DataFrame, events: Mapping[str, pd.DataFrame]) -> str:
    """Return in how many runs of each arm there are `events`, with exact 95 % intervals, as text.

    `events`: frames as those of `more_runs`, by their names in words.
    """
    names = list(table["arm"].unique())
    rows = [["runs with", *names]]
    for name, found in events.items():
        arms = [table["run"][table["arm"] == arm].isin(found["run"]) for arm in names]
        rows.append([name, *(_share(int(has.sum()), len(has)) for has in arms)])
    return aligned(rows)


def _share(some: int, whole: int) -> str:
    (low, high), _ = share_test(some, whole)
    return f"{some} of {whole} ({100 * low:.0f} to {100 * high:.0f} %)"


def _chosen(table: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    for key, value in settings.items():
        table = table[table[key] == value]
    return table
