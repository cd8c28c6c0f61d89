"""Collect everything that the page of `stabkit report` shows, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stabkit.analyze.cells import group_cells
from stabkit.analyze.collapse_events import CALLED
from stabkit.analyze.definitions import footnote
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.report.advice import Advice, advise
from stabkit.analyze.report.answers import Answer, answers
from stabkit.analyze.report.cards import Card, Pictured, make_cards, with_pictures
from stabkit.analyze.report.figures import Shown, Table, draw_figures
from stabkit.analyze.report.headline import Verdict, no_event, tell_verdict
from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.report.remedy import Sign
from stabkit.analyze.report.signs import signs_seen, where_it_began
from stabkit.analyze.report.timeline import Curve, curve
from stabkit.analyze.sentence_parts import seed_text
from stabkit.analyze.summary import run_table
from stabkit.analyze.verdict import worst_first, worst_of
from stabkit.printing import counted, first_of
from stabkit.store.schema import METRIC

ZOOMS = 24  # events on the cards of their runs; a longer page would not be read
LISTED = 100  # events, runs, pairs
OPEN_CARDS, OPEN_ROWS = 5, 10  # runs above a fold: the worst
VALUES = 20  # of one setting


@dataclass(frozen=True)
class Report:
    title: str
    folder: str
    verdict: Verdict
    answers: tuple[Answer, ...]
    lead: Shown | None  # the figure beside the answers: accuracy, or else the loss
    incidents: tuple[Pictured, ...]
    cards: tuple[Card, ...]  # the same, a card per run
    nothing: str  # why there are none, if so
    further: Table | None  # events without a card, as a table
    unlisted: int  # the number of events that are not in that table either
    runs: Table  # all, or the `LISTED` that fared worst
    curves: tuple[Curve | None, ...]  # of these runs, in the order of the table
    factors: Table | None
    shared: tuple[tuple[str, str], ...]
    figures: tuple[Shown, ...]
    undrawn: tuple[str, ...]  # figures that these runs are too many for: name and reason
    signs: Mapping[Sign, int]
    began: str
    advice: tuple[Advice, ...]
    num_runs: int
    notes: tuple[str, ...]  # how to read the page


def make_report(runs: Diagnoses) -> Report:
    """Diagnose the runs and return the report. Raises ValueError if a run cannot be read."""
    table = run_table(runs)
    verdict = tell_verdict(runs, table)
    incidents = all_incidents(runs)
    told, rest = with_pictures(incidents[:ZOOMS]), incidents[ZOOMS:]
    signs = signs_seen(runs, incidents)
    worst = str(worst_of(table)["run"])
    began = where_it_began(incidents, next(run for run in runs if run.name == worst))
    path = runs.path.resolve()
    listed = worst_first(table)[:LISTED] if len(table) > OPEN_ROWS else table
    figures, undrawn = draw_figures(runs, verdict, worst)
    advice = advise(runs, table, signs, worst, began.onset, began.groups)
    named = {run.name: run for run in runs}
    nothing = no_event(table, verdict)
    return Report(
        title="/".join(path.parts[-2:]).removeprefix("//"),  # "seeds/1" says more than "1"
        folder=str(runs.path),
        verdict=verdict,
        answers=answers(runs, verdict, incidents, worst, advice, nothing),
        lead=next((shown for shown in figures if shown.name in ("knn", "loss")), None),
        incidents=tuple(told),
        cards=tuple(make_cards(told, dict(zip(table["run"], table["verdict"], strict=True)))),
        nothing=nothing,
        further=_further(rest[:LISTED]),
        unlisted=len(rest[LISTED:]),
        runs=_run_rows(listed, len(runs)),
        curves=tuple(curve(named[name]) for name in listed["run"]),
        factors=_factors(runs, set(listed["run"])),
        shared=_shared(runs),
        figures=tuple(figures),
        undrawn=tuple(undrawn),
        signs=signs,
        began=began.words,
        advice=tuple(advice),
        num_runs=len(runs),
        notes=tuple(_notes(table)),
    )


def _notes(table: pd.DataFrame) -> list[str]:
    notes = [footnote(table)]
    if table["dips"].any() or table["drifts"].any():
        notes.append(
            "A p-value answers how often runs without a dip would show one like it. Severity is "
            "how the dip ended."
        )
    if table["bursts"].any():
        notes.append(
            "A burst is placed where its first layer leaves its range; layers that burst in the "
            "same step are named together."
        )
    return notes


def _further(incidents: Sequence[Incident]) -> Table | None:
    if not incidents:
        return None
    rows = tuple(
        (incident.headline, incident.where, f"{incident.onset:,}", f"{incident.end:,}")
        for incident in incidents
    )
    return Table("Further events", ("event", "run", "from step", "to step"), rows)


def _run_rows(table: pd.DataFrame, of: int) -> Table:
    """Return the table of the runs, with columns for what was recorded or found."""
    depths = table["deepest"].map(lambda depth: f"{100 * depth:.1f}" if depth else "-")
    columns = {
        "run": table["cell"],
        "seed": table["seed"].map(seed_text),
        "verdict": table["verdict"],
        "state": table["state"],
    }
    if table["seed"].nunique(dropna=False) == 1:
        del columns["seed"]
    if (table["state"] == "done").all():
        del columns["state"]
    metrics = set(table["metric"]) - {""}
    if metrics:
        if metrics != {METRIC}:
            columns["accuracy"] = table["metric"].replace("", "-")
        columns |= {
            "final kNN, %" if metrics == {METRIC} else "final, %": table["level"].map(_percent),
            "best": table["best"].map(_percent),
            "dips": table["dips"].astype(str),
        }
        if table["dips"].any():
            columns["deepest, points"] = depths
            columns["steps in dips"] = table["lost_steps"].map("{:,}".format)
    optional = {
        "possible dips": "possible_dips",
        "single low evaluations": "outliers",
        "loss spikes": "loss_spikes",
        "losses that left": "departures",
        "unrest": "unrest",
        "stuck losses": "stuck",
        "non-finite": "nonfinite",
        "overflows": "overflows",
        "gradient swells": "swells",
        "gradient growth": "growths",
    }
    columns |= {
        title: table[name].astype(str)
        for title, name in optional.items()
        if table[name].any() or (name == "loss_spikes" and not metrics)
    }
    if not table["judged_on"].str.contains("no gradient norm").all():
        columns["bursts"] = table["bursts"].astype(str)
    if table["patch_first"].any():
        columns["of which patch first"] = table["patch_first"].astype(str)
    if (table["collapse"] != "").any():
        columns["signs of collapse"] = table["collapse"].map(_signs)
    columns["folder"] = table["run"]
    rows = zip(*(column.astype(str) for column in columns.values()), strict=True)
    caption = "One row per run" + (", those that fared worst first" if of > OPEN_ROWS else "")
    if len(table) < of:
        caption = (
            f"The {counted(len(table), 'run')} that fared worst, one row each; {of - len(table):,} "
            "more are not listed: stabkit analyze RUNS --csv FILE writes all"
        )
    return Table(caption, tuple(columns), tuple(rows))


def _percent(accuracy: float) -> str:
    return "-" if pd.isna(accuracy) else f"{100 * accuracy:.1f}"


def _factors(runs: Diagnoses, listed: set[str]) -> Table | None:
    keys = runs.factors()
    if not keys:
        return None
    ordered = [run for cell in group_cells(runs) for run in cell.runs if run.name in listed]
    rows = tuple((run.name, *(_text(run.settings.get(key)) for key in keys)) for run in ordered)
    some = f", of the {counted(len(rows), 'run')} that fared worst" if len(rows) < len(runs) else ""
    return Table(f"Settings that differ{some}", ("run", *keys), rows)


def _shared(runs: Diagnoses) -> tuple[tuple[str, str], ...]:
    """Return the settings that all runs share.

    Settings of how runs were executed are listed as well, with their values, at most `VALUES`.
    """
    differ = set(runs.factors())
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in differ)
    found = []
    for key in keys:
        values = list(dict.fromkeys(_text(run.settings.get(key)) for run in runs))
        found.append((key, first_of(values, VALUES)))
    return tuple(found)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _signs(collapse: str) -> str:
    """Return the signs of collapse of a run in words; `-` without any."""
    return ", ".join(CALLED[name] for name in collapse.split(", ")) if collapse else "-"
