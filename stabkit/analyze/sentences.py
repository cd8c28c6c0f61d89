"""Say in sentences what was found in runs, kind by kind; `run_table` has the numbers."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from stabkit.analyze.collapse_events import ACCURACY
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.gradient_sentences import (
    bursts_in_words,
    cut_off_in_words,
    growths_in_words,
    swells_in_words,
)
from stabkit.analyze.nonfinite import names_of
from stabkit.analyze.sentence_parts import NAMED, RunOfRow, largest, named, run_of_row, still_up
from stabkit.analyze.series import accuracy_words
from stabkit.analyze.shared_falls import SharedFall, shared_in_words
from stabkit.analyze.text import layers_called, listed, risen_from, times
from stabkit.detect.departure import RATIO
from stabkit.printing import counted
from stabkit.store.names import is_held_out

SMALLEST_P = 1e-16  # smaller ones are below the rounding of the tests that give them


COLLAPSE = {  # a sign of collapse in words
    ACCURACY: "an accuracy that fell to chance",
    "loss_relative": "a loss at chance or zero",
    "feature_std": "features that hardly differ",
    "embedding_std": "embeddings that hardly differ",
    "effective_rank": "features of few dimensions",
    "probe_feature_std": "probe features that hardly differ",
    "probe_rank": "probe features of few dimensions",
    "teacher_feature_std": "teacher features that hardly differ",
    "teacher_rank": "teacher features of few dimensions",
}


def events_in_words(
    runs: Diagnoses, table: pd.DataFrame, shared: Sequence[SharedFall]
) -> list[str]:
    """Return a sentence for each kind of event that was found, and for each of the `shared`."""
    of = run_of_row(runs)
    found = [
        *shared_in_words(shared),
        *_lost(table, of),
        *_collapsed(table),
        *_drifted(table),
        *_deepest(table, of),
        *_possible(table, of),
        *_confirmed_then(table, of),
        *_loss_spikes(table, of),
        *_unrest(table, of),
        *_above_best(table, of),
        *_at_restarts(table),
        *_outliers(table, of),
        *_stuck(table, of),
        *_overflows(table, of),
        *bursts_in_words(table, of),
        *swells_in_words(table, of),
        *growths_in_words(table, of),
        *cut_off_in_words(table, of),
    ]
    return [text for text in found if text]


def p_words(p: float) -> str:
    """Return a p-value as `p = 0.003`; one too small for the test's arithmetic as a bound."""
    return f"p < {SMALLEST_P:g}" if p < SMALLEST_P else f"p = {p:.1g}"


def where_lost(run: Diagnosis) -> str:
    """Say where the values of a run were lost first: not finite, or a loss that left for good."""
    parts = []
    if run.nonfinite:
        first = min(run.nonfinite, key=lambda entry: int(entry.get("step") or 0))
        where = layers_called(listed(names_of(first)[:NAMED])) if names_of(first) else "a value"
        verb = "are" if len(names_of(first)) > 1 else "is"
        parts.append(f"{where} {verb} not finite from step {int(first.get('step') or 0):,}")
    for row in run.loss.departures.itertuples():
        if row.level == 0 and math.isnan(row.ratio):
            parts.append(
                f"{row.series} is exactly 0 from step {row.onset:,} to the end, as some trainers "
                "write a loss that is not finite"
            )
            continue
        parts.append(
            f"{row.series} left its best level ({row.best:.3g}) for good from step {row.onset:,}; "
            f"its last fifth stood at {row.level:.3g} (median)"
        )
    return "; ".join(parts)


def _lost(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    rows = table[table["verdict"] == "diverged"]
    for i, row in rows.head(NAMED).iterrows():
        yield f"{named(row)}: {where_lost(of[str(i)])}."
    if len(rows) > NAMED:
        yield f"{counted(len(rows) - NAMED, 'run')} more diverged."


def _collapsed(table: pd.DataFrame) -> Iterator[str]:
    signs = table["collapse"][table["collapse"] != ""].str.split(", ").explode().value_counts()
    if signs.empty:
        return
    number = int((table["collapse"] != "").sum())
    shown = [COLLAPSE[str(sign)] + (f" in {n}" if number > 1 else "") for sign, n in signs.items()]
    text = f"{counted(number, 'run')} collapsed, as shown by {listed(shown)}."
    yield textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _drifted(table: pd.DataFrame) -> Iterator[str]:
    if table["drifts"].any():
        runs = counted(int((table["drifts"] > 0).sum()), "run")
        most = 100 * table["sag"].max()
        yield f"{runs} drifted down slowly without a dip, by up to {most:.1f} points."


def _deepest(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    if not table["dips"].any():
        return
    worst = table.loc[table["deepest"].idxmax()]
    found = of[str(worst.name)].accuracy.dips
    dip = found.loc[found["depth"].idxmax()]
    end = "not recovered when the run ended"
    if not pd.isna(dip["recovery"]):
        end = f"recovered by step {int(dip['recovery'])}"
    p_value = "no p-value: sample counts unknown"
    if not math.isnan(dip["p_value"]):
        p_value = p_words(dip["p_value"])
    yield (
        f"The deepest dip ({named(worst)}): {100 * dip['depth']:.1f} points "
        f"below its level\nat step {int(dip['trough'])}; begun after step {int(dip['onset'])}, "
        f"{end} ({p_value})."
    )


def _possible(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    some = table[table["possible_dips"] > 0]
    if some.empty:
        return
    where, run, dip = largest(some, of, lambda run: run.accuracy.possible_dips, "z")
    end = "" if pd.isna(dip["recovery"]) else f" to {int(dip['recovery']):,}"
    number = counted(int(some["possible_dips"].sum()), "possible dip")
    yield (
        f"{number} in {counted(len(some), 'run')}, not clear enough to count: some healthy runs "
        f"have one too.\nThe clearest ({named(where)}): {accuracy_words(run.accuracy.metric)} "
        f"{100 * dip['depth']:.1f} points below its\nlevel at step {int(dip['trough']):,}, "
        f"from step {int(dip['onset']):,}{end}."
    )


def _confirmed_then(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    some = table[table["confirmed_then"] > 0]
    if some.empty:
        return
    where, run, dip = largest(some, of, lambda run: run.accuracy.confirmed_then, "depth")
    number = counted(int(some["confirmed_then"].sum()), "dip")
    yield (
        f"{number} in {counted(len(some), 'run')} stood out while it trained, and no longer among "
        f"all evaluations,\nso the verdict leaves it out. The deepest ({named(where)}): "
        f"{accuracy_words(run.accuracy.metric)} {100 * dip['depth']:.1f} points below its\nlevel "
        f"at step {int(dip['trough']):,}, from step {int(dip['onset']):,}."
    )


def _loss_spikes(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    spiking = table[table["loss_spikes"] > 0]
    if spiking.empty:
        return
    where, run, spike = largest(spiking, of, lambda run: run.loss.spikes, "ratio")
    end = f"ended at step {spike['end']:,}"
    if still_up(run, spike):
        end = "had not come back when the record ended"
    number = counted(int(spiking["loss_spikes"].sum()), "loss spike")
    yield (
        f"{number} in {counted(len(spiking), 'run')}. The largest ({named(where)}): "
        f"{spike['first']} rose to {times(spike['ratio'])}\n{risen_from(spike)}; it began at step "
        f"{spike['onset']:,} and {end}."
    )


def _above_best(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    some = table[table["above_best"] > 0]
    if some.empty:
        return
    where, _, row = largest(some, of, lambda run: run.loss.above_best, "ratio")
    number = int(some["above_best"].sum())
    losses = "loss ended above its" if number == 1 else "losses ended above their"
    why = f"That counts from {RATIO:g} times on"
    if is_held_out(row["series"]):
        why = "That does not count: overfitting raises held-out losses too"
    yield (
        f"{number:,} {losses} best level, in {counted(len(some), 'run')}. The highest "
        f"({named(where)}):\n{row['series']} ended at {times(row['ratio'])} its best level of "
        f"{row['best']:.3g}, above it from step {row['onset']:,} on.\n{why}."
    )


def _at_restarts(table: pd.DataFrame) -> Iterator[str]:
    some = table[table["at_restarts"] > 0]
    if len(some):
        number = int(some["at_restarts"].sum())
        events = "dip or loss spike begins" if number == 1 else "dips and loss spikes begin"
        yield (
            f"{number:,} {events} where the learning rate restarts, and all is back before it "
            f"restarts again,\nin {counted(len(some), 'run')}: no verdict rests on that."
        )


def _unrest(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    swinging = table[table["unrest"] > 0]
    if swinging.empty:
        return
    where, run, row = largest(swinging, of, lambda run: run.unrest, "ratio")
    number = counted(int(swinging["unrest"].sum()), "stretch")
    metric, series = run.accuracy.metric, row["series"]
    name = accuracy_words(metric) if series == metric else series
    yield (
        f"{number} of unrest in {counted(len(swinging), 'run')}. The clearest ({named(where)}): "
        f"{name}\nswings between {swings_between(run, row)} from step {row['onset']:,} to step "
        f"{row['end']:,}, {times(row['ratio'])} as far as before."
    )


def swings_between(run: Diagnosis, row: "pd.Series | dict[Any, Any]") -> str:
    """Return between which values unrest swings: an accuracy in percent, a loss as it is."""
    if row["series"] == run.accuracy.metric:
        return f"{100 * row['low']:.1f} % and {100 * row['high']:.1f} %"
    return f"{row['low']:.3g} and {row['high']:.3g}"


def _outliers(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    falling = table[table["outliers"] > 0]
    if falling.empty:
        return
    where, run, fall = largest(falling, of, lambda run: run.accuracy.outliers, "depth")
    beside = "the one before" if fall["last"] else "those beside it"
    number = counted(int(falling["outliers"].sum()), "single evaluation")
    yield (
        f"{number} fell far below the noise in {counted(len(falling), 'run')}. The deepest "
        f"({named(where)}):\n{accuracy_words(run.accuracy.metric)} {100 * fall['depth']:.1f} "
        f"points below {beside} at step {fall['onset']:,}. One evaluation alone is no dip:\nit "
        "does not tell whether the network or its evaluation failed."
    )


def _stuck(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    for i, row in table[table["stuck"] > 0].head(NAMED).iterrows():
        for loss in of[str(i)].stuck.itertuples():
            name = "the loss" if loss.series == "loss_relative" else loss.series
            unit = " times that of chance" if loss.series == "loss_relative" else ""
            yield (
                f"{named(row)}: {name} never fell: {loss.start:.4g}{unit} at first, "
                f"{loss.level:.4g} at the end."
            )


def _overflows(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    runs = table[table["overflows"] > 0]
    if runs.empty:
        return
    run = of[str(runs.index[0])]
    steps = [int(entry.get("step") or 0) for entry in run.overflows]
    at = ", ".join(f"{step:,}" for step in steps[:NAMED]) + (", …" if len(steps) > NAMED else "")
    where = layers_called(listed(names_of(run.overflows[0])[:NAMED]))
    yield (
        f"{where} overflowed at step {at} and was finite again, in {counted(len(runs), 'run')}: no "
        "divergence,\nsince mixed precision skips such steps."
    )
