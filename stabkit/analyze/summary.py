"""Summarize a folder of runs: one row per run, then what the rows mean in words."""

import math
from collections import Counter
from collections.abc import Sequence
from textwrap import fill

import pandas as pd

from stabkit.analyze.accuracy_events import counts_known
from stabkit.analyze.cells import cell_label, group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.endings import broken_off, equal_runs, not_recorded
from stabkit.analyze.findings import findings
from stabkit.analyze.first_words import first_gap, nothing_found, nothing_said
from stabkit.analyze.notes import notes_in_words
from stabkit.analyze.order import patch_projection
from stabkit.analyze.sentence_parts import NAMED, seed_text
from stabkit.analyze.sentences import events_in_words
from stabkit.analyze.shared_falls import SharedFall, shared_falls
from stabkit.analyze.text import aligned
from stabkit.analyze.verdict import (
    UNNOTICED,
    counted_verdicts,
    ended_well,
    is_unstable,
    worst_first,
)
from stabkit.printing import counted, one_line
from stabkit.store.schema import METRIC

LISTED = 40  # runs; a longer table would not be read
WIDTH = 100  # characters of a line of a table that has the names of runs
OF_DIPS = ("deepest", "in dips")  # columns that say nothing where there is no dip
APART = 0.1  # points between the final and the last accuracy, as shown
WORDS = "`stabkit analyze --help` says what these words mean."


def run_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row per run: cell, seed, state, verdict, accuracy, and what was found.

    Verdicts: `diverged` (values that are not finite, or a loss that left its level for good),
    `collapsed` (`collapse` names the signals), `unstable` (a dip, a drift, unrest or a spike of the
    loss), `bursts` (only gradients burst, swelled or grew), `outlier` (a single evaluation fell),
    `stuck` (a loss never fell), `stable`, or `unknown`. A run is unknown if nothing was recorded
    that would show a fault, if a detector refuses values, or if rows are missing for steps that it
    trained (`gaps` names them). `judged_on` says what a run was judged on. `last` is the last
    accuracy, `level` the median of the last fifth of the evaluations, `best` the highest median of
    as many in a row. `lost_steps` are the steps spent in dips. `deepest` and `sag` (of the drifts)
    are fractions. These change no verdict: `possible_dips`, which healthy runs have too;
    `confirmed_then`, dips confirmed while the run trained that the whole run does not show;
    `above_best`, losses that ended above their best level and did not leave it; and `bursts` that
    are not among the `clear_bursts`. `patch_first` counts the bursts that began in the patch
    projection, alone or with others. The index has the paths of the runs.
    """
    both = [(run, cell_label(cell)) for cell in group_cells(runs) for run in cell.runs]
    index = pd.Index([str(run.path) for run, _ in both], dtype=object)  # a path may be no UTF-8
    return pd.DataFrame([_row(run, cell) for run, cell in both], index=index)


def _row(run: Diagnosis, cell: str) -> dict[str, object]:
    run.examine()
    evals, found, sags = run.accuracy.evals, run.accuracy.dips, run.accuracy.drifts
    onsets, patch = run.gradients.onsets, patch_projection(run)
    return {
        "cell": cell,
        "seed": run.settings.get("seed"),
        "state": run.stored.dir.state(),
        "verdict": run.verdict,
        "judged_on": run.judged.words(),
        "collapse": ", ".join(run.collapses["signal"].unique()),
        "metric": run.accuracy.metric if len(evals) else "",
        "last": evals["value"].iloc[-1] if len(evals) else math.nan,
        "level": run.accuracy.level,
        "best": run.accuracy.best,
        "dips": len(found),
        "deepest": found["depth"].max() if len(found) else 0.0,
        "possible_dips": len(run.accuracy.possible_dips),
        "confirmed_then": len(run.accuracy.confirmed_then),
        "drifts": len(sags),
        "sag": sags["depth"].max() if len(sags) else 0.0,
        "lost_steps": run.accuracy.steps_in_dips,
        "outliers": len(run.accuracy.outliers),
        "loss_spikes": len(run.loss.spikes),
        "departures": len(run.loss.departures),
        "above_best": len(run.loss.above_best),
        "unrest": len(run.unrest),
        "stuck": len(run.stuck),
        "bursts": len(run.gradients.bursts),
        "clear_bursts": len(run.gradients.bursts_that_count),
        "swells": len(run.gradients.swells),
        "growths": len(run.gradients.growths),
        "patch_first": int((onsets.loc[onsets["layer"] == patch, "share"] > 0).sum()),
        "nonfinite": len(run.nonfinite),
        "overflows": len(run.overflows),
        "at_restarts": len(run.at_restarts),
        "gaps": "; ".join(run.gaps()),
        "left_out": "; ".join(run.left_out),
        "run": run.name,
    }


def summary(runs: Diagnoses) -> str:
    """Return the table of `run_table` and what it means, as text."""
    return describe(runs, run_table(runs))


def describe(runs: Diagnoses, table: pd.DataFrame) -> str:
    """Say what the table of `run_table` means, the verdict first; of many runs, list the worst."""
    shared = shared_falls(runs)
    parts = [
        _verdict(runs, table, shared),
        _headline(runs, table),
        _text_table(table),
        *lacking_rows(table),
        *_findings(runs, table, shared),
        *(fill(text, 100, break_long_words=False) for text in equal_runs(runs)),
        *_notes(runs),
        WORDS,
    ]
    return "\n\n".join(part for part in parts if part)


def _notes(runs: Diagnoses) -> list[str]:
    """Return the table of notes on the runs; nothing without notes."""
    named = ((run_label(cell, run), run.notes) for cell in group_cells(runs) for run in cell.runs)
    return notes_in_words(named)


def _headline(runs: Diagnoses, table: pd.DataFrame) -> str:
    states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    lines = [f"{one_line(runs.path)}: {counted(len(table), 'run')} ({states})"]
    lines += [*broken_off(runs, table), *not_recorded(runs)]
    lines += judged_on(table)
    lines += _evaluated(runs, len(table))
    searched = [d.accuracy.evals for d in runs if d.judged.accuracy]
    without = sum(not counts_known(evals) for evals in searched)
    if without:
        lines.append(
            f"{counted(without, 'run')} without sample counts: dips there are not tested, the "
            "noise rule alone finds\nthem, which mistakes slow noise for dips more often."
        )
    return "\n".join(lines)


def _evaluated(runs: Diagnoses, total: int) -> list[str]:
    """Return a sentence on how accuracy was measured, for each group of runs that share it."""
    ordered = [run for cell in group_cells(runs) for run in cell.runs]
    found = Counter(text for run in ordered if (text := _measured(run)))
    if list(found.values()) == [total]:
        return list(found)
    told = [f"{counted(n, 'run')}: {text}" for text, n in found.most_common(NAMED)]
    rest = sum(found.values()) - sum(n for _, n in found.most_common(NAMED))
    return [*told, f"{counted(rest, 'run')} more measured in other ways."] if rest else told


def _measured(run: Diagnosis) -> str:
    """Say how often the accuracy of a run was measured, on what, and what chance gives."""
    evals = run.accuracy.evals
    if evals.empty:
        return ""
    first = evals.iloc[0]
    gap = int(evals["step"].diff().median()) if len(evals) > 1 else 0
    often = {0: "once", 1: "every step"}.get(gap, f"every {gap:,} steps")
    things = "images" if run.accuracy.metric == METRIC else "samples"
    size = f"{int(first['n']):,}" if counts_known(evals) else "an unknown number of"
    chance = "unknown" if math.isnan(first["chance"]) else f"{100 * first['chance']:.3g} %"
    name = "Held-out kNN" if run.accuracy.metric == METRIC else run.accuracy.metric
    return f"{name} {often} on {size} {things}, chance {chance}."


def judged_on(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each different set of series that runs were judged on."""
    found = table["judged_on"].value_counts(sort=False)
    if len(found) == 1:
        return [str(found.index[0])]
    return [f"{counted(n, 'run')} {text[0].lower()}{text[1:]}" for text, n in found.items()]


def lacking_rows(table: pd.DataFrame) -> list[str]:
    """Say which of several runs lack rows; nothing if none does."""
    if (table["gaps"] == "").all() or (table["verdict"] == "unknown").all():
        return []  # `nothing_said` tells of them
    count = counted(int((table["gaps"] != "").sum()), "run")
    return [
        f"{count} without all values of the steps trained; there nothing can be seen.\n"
        + first_gap(table)
    ]


def _text_table(table: pd.DataFrame) -> str:
    if len(table) > LISTED:
        found = counted_verdicts(table["verdict"])
        worst = worst_first(table).head(LISTED)
        rest = len(table) - LISTED
        return (
            f"{found}. The {LISTED} that fared worst:\n\n{_text_table(worst)}\n\n"
            f"... and {counted(rest, 'run')} more: `stabkit analyze RUNS --csv FILE` writes all."
        )
    own = set(table["metric"]) <= {METRIC, ""}
    accuracy = {
        "final kNN, %" if own else "final, %": table["level"].map(_percent),
        "best, %": table["best"].map(_percent),
        "dips": table["dips"].astype(str),
        "deepest": table["deepest"].map(lambda d: f"{100 * d:.1f} pt" if d else "-"),
        "in dips": table["lost_steps"].astype(str),
    }
    with_accuracy = (table["metric"] != "").any()
    columns = {
        "cell": table["cell"],
        "seed": table["seed"].map(seed_text),
        "verdict": table["verdict"],
        **(accuracy if with_accuracy else {}),
    }
    if table["loss_spikes"].any() or not with_accuracy:
        columns["loss spikes"] = table["loss_spikes"].astype(str)
    columns["bursts"] = table["bursts"].astype(str)
    columns |= {
        name: table[name].astype(str) for name in ("swells", "growths") if table[name].any()
    }
    return _with_names(columns, table) + _last_and_final(table)


def _with_names(columns: "dict[str, pd.Series[str]]", table: pd.DataFrame) -> str:
    """Return columns as text, the names of runs first if each cell holds one and they fit."""
    text = _columns(columns)
    if table["cell"].duplicated().any() or (table["cell"] == table["run"]).all():
        return text
    named = {"run": table["run"], **columns}
    if not table["dips"].any():
        named = {name: column for name, column in named.items() if name not in OF_DIPS}
    wider = _columns(named)
    return wider if max(map(len, wider.splitlines())) <= WIDTH else text


def _columns(columns: "dict[str, pd.Series[str]]") -> str:
    left = [i for i, name in enumerate(columns) if name in ("run", "cell", "verdict")]
    return aligned([list(columns), *zip(*columns.values(), strict=True)], left)


def _last_and_final(table: pd.DataFrame) -> str:
    """Say that the final accuracy is not the last one, if the table shows another number."""
    apart = (table["last"] - table["level"]).abs()
    if not 100 * apart.max() >= APART:
        return ""
    return (
        "\nfinal: the median of the last fifth of the evaluations; the last one differs by up to "
        f"{100 * apart.max():.1f} points."
    )


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _verdict(runs: Diagnoses, table: pd.DataFrame, shared: Sequence[SharedFall]) -> str:
    """Say in a sentence or two how many runs trained unstably."""
    unstable = table[is_unstable(table)]
    if (table["verdict"] == "unknown").all():
        return nothing_said(table)
    if unstable.empty:
        return nothing_found(runs, table, shared)
    finished = ended_well(unstable)
    which, who = f"{len(unstable)} of {len(table)} runs", f"{finished} of them"
    if len(unstable) == 1:
        who = "It"
    if len(table) == 1:
        which = "The run"
    text = f"{which} trained unstably."
    if finished:
        text += f" {who} {UNNOTICED}"
    return text


def _findings(runs: Diagnoses, table: pd.DataFrame, shared: Sequence[SharedFall]) -> list[str]:
    if (table["verdict"] == "unknown").all():
        return []
    unstable = is_unstable(table).any()
    more = findings(runs) if len(table) <= LISTED and unstable else []
    return [*events_in_words(runs, table, shared), *more]
