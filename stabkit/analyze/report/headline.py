"""Write the first words of the report: stable or not, the worst run, what instability cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import BROKE_OFF, Diagnosis
from stabkit.analyze.endings import broken_off, equal_runs, not_recorded
from stabkit.analyze.first_words import nothing_found, nothing_said, sign_sought
from stabkit.analyze.sentence_parts import seed_text
from stabkit.analyze.sentences import events_in_words
from stabkit.analyze.series import accuracy_words
from stabkit.analyze.shared_falls import shared_falls
from stabkit.analyze.summary import judged_on, lacking_rows
from stabkit.analyze.text import listed
from stabkit.analyze.verdict import DOUBTFUL, UNNOTICED, ended_well, is_unstable, worst_of
from stabkit.printing import counted
from stabkit.store.schema import METRIC


@dataclass(frozen=True)
class Verdict:
    """The first words of the report, and the mood of the page.

    The first of `lines` is for the first answer, which tells the events of a single run as well.
    """

    mood: Literal["bad", "warn", "good", "unknown"]
    headline: str
    lines: tuple[str, ...]


ONE_RUN = {
    "diverged": "Diverged",
    "collapsed": "Collapsed",
    "unstable": "Unstable",
}
ROSE = {"clear_bursts": "burst", "swells": "swelled", "growths": "grew"}  # columns of a table
DOUBT = {
    "outlier": "a single evaluation fell",
    "stuck": "the loss never fell",
}


def tell_verdict(runs: Diagnoses, table: pd.DataFrame) -> Verdict:
    """Return the first words. `table` is that of `run_table`."""
    bad = table[is_unstable(table)]
    unknown = int((table["verdict"] == "unknown").sum())
    under_way = int((~table["state"].isin(["done", "recorded"])).sum())
    lines = []
    if under_way:
        states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
        lines.append(f"Not every run came to its end ({states}): this is the verdict so far.")
    lines += [*broken_off(runs, table), *not_recorded(runs)]
    if unknown == len(table):
        lines += [nothing_said(table), *judged_on(table)]
        return Verdict("unknown", "Cannot be said", tuple(lines))
    if unknown:
        lines.append(f"{counted(unknown, 'run')} cannot be judged.")
    lines += lacking_rows(table)
    lines += [*judged_on(table), *equal_runs(runs)]
    known = counted(len(table) - unknown, "run")
    shared = shared_falls(runs)
    nothing = " ".join(nothing_found(runs, table, shared).split()) if bad.empty else ""
    told = [" ".join(text.split()) for text in events_in_words(runs, table, shared)]
    if not bad.empty:
        words = f"Unstable: {len(bad)} of {counted(len(table), 'run')}"
        if len(table) == 1:
            words = f"{ONE_RUN[str(bad.iloc[0]['verdict'])]}"
        return Verdict("bad", words, (*_unstable(runs, table, bad), *told, *lines))
    doubtful = table[table["verdict"].isin(DOUBTFUL)]
    if shared:
        words = "Runs of one setting fall together, and none shows it by itself"
        return Verdict("warn", words, (nothing, *told, *lines))
    if doubtful.empty:
        words = f"No {sign_sought(table)} of instability in {known}"
        failed = int(table["state"].isin(BROKE_OFF).sum())
        if failed:
            words += ", which failed" if len(table) == 1 else f", of which {failed} failed"
        return Verdict("warn" if failed else "good", words, (nothing, *told, *lines))
    kinds = [_doubt(doubtful, str(kind)) for kind in doubtful["verdict"].unique()]
    words = f"{' and '.join(kinds)} in {counted(len(doubtful), 'run')}"
    if "bursts" in set(doubtful["verdict"]) and (table["metric"] != "").all():
        words += ", and accuracy does not show it"
    words = words[0].upper() + words[1:]
    return Verdict("warn", words, (nothing, *told, *lines))


def _doubt(table: pd.DataFrame, kind: str) -> str:
    """Say what made a verdict that is neither stable nor unstable."""
    rows = table[table["verdict"] == kind]
    rose = [word for column, word in ROSE.items() if rows[column].any()]
    return f"gradients {listed(rose)}" if kind == "bursts" else DOUBT[kind]


def no_event(table: pd.DataFrame, verdict: Verdict) -> str:
    """Say why there is no event to tell: none was found, or what was found does not count."""
    if verdict.mood == "unknown":
        return "No event could be sought."
    weak = {"gradient burst": "bursts", "possible dip": "possible_dips"}
    sums = {name: int(table[column].sum()) for name, column in weak.items()}
    found = [counted(number, name) for name, number in sums.items() if number]
    above, texts = int(table["above_best"].sum()), []
    if found:
        do = "does" if sum(sums.values()) == 1 else "do"
        texts.append(f"{listed(found)} {do} not stand out from the noise, and {do} not count.")
    if above:
        losses = "1 loss ended above its best level, and does"
        if above > 1:
            losses = f"{above:,} losses ended above their best level, and do"
        texts.append(f"{losses} not count.")
    return " ".join(texts) or "No event was found."


def isolated(text: object) -> str:
    """Isolate a name so that its direction of writing does not turn the sentence around."""
    return str(text) if str(text).isascii() else f"\u2068{text}\u2069"


def _unstable(runs: Diagnoses, table: pd.DataFrame, bad: pd.DataFrame) -> list[str]:
    kinds = {
        "diverged": "diverged",
        "collapsed": "collapsed",
        "unstable": _fell(bad[bad["verdict"] == "unstable"]),
    }
    parts = [f"{n} {kinds[str(kind)]}" for kind, n in bad["verdict"].value_counts().items()]
    lines = [f"{', '.join(parts)}."] if len(table) > 1 else [""]
    finished = ended_well(bad)
    if finished and len(table) == 1:
        lines[0] = f"It {UNNOTICED}"
    elif finished:
        who = f"{finished} of the {len(bad)} unstable"
        if finished == len(bad):
            who = "It" if finished == 1 else "All of these"
        lines[0] += f" {who} {UNNOTICED}"
    worst = worst_of(table)
    found = [*lines, _worst(runs, table, worst), *_cost(runs, table)]
    return [line for line in found if line] or [""]  # the events of the run say all


def _fell(rows: pd.DataFrame) -> str:
    """Say what unstable runs did; each word holds of one of them at least."""
    fell = rows["dips"] + rows["drifts"] > 0
    spiked, swung = ~fell & (rows["loss_spikes"] > 0), ~fell & (rows["loss_spikes"] == 0)
    words = {
        "dipped or drifted": fell,
        "had spikes of the loss": spiked,
        "swung more than before": swung,
    }
    return ", or ".join(text for text, which in words.items() if which.any())


def _worst(runs: Diagnoses, table: pd.DataFrame, worst: pd.Series) -> str:
    run = _run(runs, worst)
    text = f"The worst run is {_name(worst)} ({worst['verdict']})." if len(table) > 1 else ""
    level = _level(run)
    if level is None:
        return text
    text += f"{' ' if text else ''}It ended at {100 * level:.1f} % {_accuracy(run)}"
    stable = table[table["verdict"].isin(["stable", "bursts"])]
    alike = _most_alike(runs, run, [_named(runs, name) for name in stable["run"]])
    if alike is not None:
        row = stable[stable["run"] == alike.name].iloc[0]
        distance = 100 * ((_level(alike) or 0.0) - level)
        text += f", {abs(distance):.1f} points {'below' if distance >= 0 else 'above'} the stable "
        text += f"run most like it ({_name(row)})"
    else:
        below = round(100 * (worst["best"] - level), 1)
        text += f", {below:.1f} points below its own best" if below else ", at its own best"
    steps = _steps(run)
    if worst["lost_steps"]:
        text += f"; {worst['lost_steps']:,} of its {steps:,} steps were spent in dips"
        text += f", the deepest {100 * worst['deepest']:.1f} points"
    return text + "."


def _accuracy(run: Diagnosis) -> str:
    words = accuracy_words(run.accuracy.metric)
    return words if run.accuracy.metric == METRIC else f"({isolated(words)})"


def _most_alike(runs: Diagnoses, run: Diagnosis, others: Sequence[Diagnosis]) -> Diagnosis | None:
    """Return the run that differs in the fewest settings; among equals, the highest level."""
    factors = runs.factors()
    ranked = [
        (sum(other.settings.get(key) != run.settings.get(key) for key in factors), -level, i)
        for i, other in enumerate(others)
        if (level := _level(other)) is not None
    ]
    return others[min(ranked)[2]] if ranked else None


def _cost(runs: Diagnoses, table: pd.DataFrame) -> list[str]:
    lost, total = int(table["lost_steps"].sum()), sum(_steps(run) for run in runs)
    if not (lost and total):
        return []
    return [f"Dips took {lost:,} of all {total:,} steps ({lost / total:.0%})."]


def _name(row: pd.Series) -> str:
    seed = "" if pd.isna(row["seed"]) else f", seed {seed_text(row['seed'])}"
    return isolated(row["cell"]) + seed


def _run(runs: Diagnoses, row: pd.Series) -> Diagnosis:
    return _named(runs, row["run"])


def _named(runs: Diagnoses, name: str) -> Diagnosis:
    return next(run for run in runs if run.name == name)


def _level(run: Diagnosis) -> float | None:
    return None if math.isnan(run.accuracy.level) else run.accuracy.level


def _steps(run: Diagnosis) -> int:
    status = run.stored.dir.last_status()
    if status and status.step:
        return status.step
    evals = run.accuracy.evals["step"]
    return int(evals.max()) if len(evals) else 0
