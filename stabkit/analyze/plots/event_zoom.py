"""Draw the figure `event-zoom`: what every signal did around an event, aligned at its onset."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.cells import group_cells, run_label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.clock import warmup_and_epoch
from stabkit.analyze.plots.curves import (
    accuracy_axis,
    gradient_curves,
    loss_curve,
    loss_events,
    main_loss,
    spacing,
    spans_decades,
    two_lines,
)
from stabkit.analyze.plots.layer_styles import (
    Styles,
    cross_out,
    layer_handles,
    mark_spikes,
    not_finite_handle,
    say_nothing,
    styles_of,
    telling_layers,
)
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import RC, align_names, new_figure
from stabkit.analyze.sentence_parts import still_up

MARGIN = (30, 200)  # least and most values shown on each side; else as many as the event is long
AROUND = (60, 120)  # most values shown before and after the onset: more would be no zoom
MOST_BEGUN = 2  # layers where a burst began; more lines would hide each other
BEFORE = 20  # a value is compared with the median of so many steps if no detector found anything
PANELS = {"gradient": 3, "loss": 2, "accuracy": 2}  # and their relative heights
COLUMNS = [
    "event",
    "run",
    "onset",
    "end",
    "per_epoch",
    "of",
    "panel",
    "series",
    "depth",
    "step",
    "offset",
    "value",
    "spike",
]


class _Event(NamedTuple):
    size: float
    what: str
    label: str  # of the run
    run: Diagnosis
    onset: int
    end: int
    loss: str | None = None


def event_zoom_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of `event_zoom_rows` for the worst event of each kind that the runs have.

    The kinds are: a loss that left for good, a dip of accuracy, a spike of a loss, a burst of
    gradients. Those of one incident share their rows (`_add`). If there is none, return rows for
    the value of a first layer that stands out most from the 20 values before it. The name of that
    event says that it is none. `of` counts all runs.
    """
    labelled = [
        (number, run_label(cell, run), run)
        for number, cell in enumerate(group_cells(runs))
        for run in cell.runs
    ]
    chosen: list[_Event] = []
    for events in (_dips, _bursts, _loss_spikes, _departures, _unrest):
        found = [event for _, label, run in labelled for event in events(label, run)]
        _add(chosen, found, {run.path: number for number, _, run in labelled})
    if not chosen:
        rises = [rise for _, label, run in labelled if (rise := _largest_rise(label, run))]
        chosen = sorted(rises, key=lambda event: -event.size)[:1]
    frames = [
        event_zoom_rows(event.run, event.onset, event.end, event.loss).assign(
            event=f"{event.what}, {event.label}", of=len(labelled)
        )
        for event in chosen
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _add(chosen: list[_Event], found: Sequence[_Event], cells: Mapping[Path, int]) -> None:
    """Add the largest of the events of one kind; one of an incident that is chosen only names it.

    Events close together in one run are one incident. If the largest event is what an incident
    chosen in another seed of its cell shows too, at the same steps, that incident stands for it.
    """
    if not found:
        return
    worst = max(found, key=lambda event: event.size)
    for i, other in enumerate(chosen):
        mine = [event for event in found if event.run is other.run and _close(event, other)]
        if mine and cells[worst.run.path] == cells[other.run.path] and _close(worst, other):
            what = worst.what if worst.run is other.run else worst.what.partition(" ")[2]
            chosen[i] = other._replace(what=f"{other.what}, {what}", loss=other.loss or worst.loss)
            return
    chosen.append(worst)


def _close(one: _Event, other: _Event) -> bool:
    return one.onset <= other.end + MARGIN[0] and other.onset <= one.end + MARGIN[0]


def event_zoom_rows(run: Diagnosis, onset: int, end: int, loss: str | None = None) -> pd.DataFrame:
    """Return every value drawn for one event of a run, from before its onset to after its end.

    A long event is cut: at most `AROUND` values before and after its onset.

    Columns: event (a name: run and step), onset, end (steps; none if the event was not over when
    the run ended), per_epoch (steps of an epoch, if known), of (1, the run), panel (`gradient`,
    `loss`, `accuracy`), series (a layer, or the recorded name), depth (of the layer), step, offset
    (steps since the onset), value (gradients over the median of the layer in the run), spike
    (whether a spike of the series begins here). Gradients are those of the first layer, the last
    block, the last layer of all and those where a burst began; without layers, of the whole model.
    `loss` names the loss to show instead of the main one.
    """
    norms = gradient_curves(run)
    bursts = run.gradients.bursts
    near = bursts[(bursts["onset"] <= end) & (bursts["end"] >= onset - MARGIN[0])]
    began = [layer for first in near["first"] for layer in str(first).split(", ")[:MOST_BEGUN]]
    norms = norms[norms["layer"].isin([*telling_layers(norms), *began[:MOST_BEGUN]])]
    gradient = pd.DataFrame(
        {"series": norms["layer"], "depth": norms["depth"].astype(float), "step": norms["step"]}
        | {"value": norms["relative"], "panel": "gradient"}
    )
    loss = loss or main_loss(run)
    others = [
        ("loss", loss or "loss", loss_curve(run, loss)),
        ("accuracy", run.accuracy.metric, run.accuracy.evals.set_index("step")["value"]),
    ]
    parts = [gradient] + [
        pd.DataFrame({"step": values.index, "value": values.to_numpy(dtype=float)}).assign(
            series=name, depth=math.nan, panel=panel
        )
        for panel, name, values in others
    ]
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    spikes = run.gradients.spikes
    begun = set(zip(spikes["layer"].astype(str), spikes["onset"], strict=True))
    if loss:
        begun |= {(loss, first) for first, _ in loss_events(run, loss)}
    rows["spike"] = [at in begun for at in zip(rows["series"], rows["step"], strict=True)]
    every = min((spacing(part["step"]) for _, part in rows.groupby("series")), default=1)
    margin = min(max(end - onset, MARGIN[0] * every), MARGIN[1] * every)
    before, after = (most * every for most in AROUND)
    known = None if _is_open(run, onset, end) else end
    rows = rows[rows["step"].between(onset - min(margin, before), min(end + margin, onset + after))]
    name = f"{run.name}, step {onset}"
    rows = rows.assign(event=name, run=run.name, onset=onset, offset=rows["step"] - onset)
    rows = rows.assign(per_epoch=warmup_and_epoch(run)["per_epoch"], of=1)
    rows["end"] = pd.Series(known, index=rows.index, dtype="Int64")
    return rows[COLUMNS].reset_index(drop=True)


def _is_open(run: Diagnosis, onset: int, end: int) -> bool:
    """Return whether this is an event that was not over when the run ended.

    So is a dip that did not recover, a loss that left for good, is stuck or in a spike, and values
    that are not finite. Their `end` is where the run ended.
    """
    dips = run.accuracy.dips[run.accuracy.dips["recovery"].isna()]
    up = [still_up(run, spike) for spike in run.loss.spikes.to_dict("records")]
    spikes = run.loss.spikes[np.array(up, dtype=bool)]
    if any(
        ((found["onset"] == onset) & (found["end"] == end)).any()
        for found in (dips, run.loss.departures, run.stuck, spikes)
    ):
        return True
    lost = onset in [int(entry.get("step") or 0) for entry in run.nonfinite]
    return lost and end > onset and end >= run.tables.scalars()["step"].max()


def _dips(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(dip["depth"], "deepest dip", label, run, int(dip["onset"]), int(dip["end"]))
        for dip in run.accuracy.dips.to_dict("records")
    ]


def _bursts(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(b["ratio"], "largest gradient burst", label, run, b["onset"], b["end"])
        for b in run.gradients.bursts.to_dict("records")
    ]


def _loss_spikes(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(
            s["ratio"], "largest loss spike", label, run, s["onset"], s["end"],
            str(s["first"]).split(", ")[0],
        )
        for s in run.loss.spikes.to_dict("records")
    ]  # fmt: skip


def _departures(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(
            d["level"] - d["best"], f"{d['series']} left for good", label, run, d["onset"],
            d["end"], d["series"],
        )
        for d in run.loss.departures.to_dict("records")
    ]  # fmt: skip


def _unrest(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(
            u["ratio"], f"unrest of {u['series']}", label, run, u["onset"], u["end"],
            None if u["series"] == run.accuracy.metric else u["series"],
        )
        for u in run.unrest.to_dict("records")
    ]  # fmt: skip


def _largest_rise(label: str, run: Diagnosis) -> _Event | None:
    norms = gradient_curves(run)
    norms = norms[norms["layer"].isin(telling_layers(norms)[:1])]
    before = norms["relative"].rolling(BEFORE).median().shift()
    rise = (norms["relative"] / before).where(lambda ratio: np.isfinite(ratio))
    if not rise.notna().any():
        return None
    at = int(norms.loc[rise.idxmax(), "step"])
    what = f"no event found, largest rise of {norms['layer'].iloc[0]}"
    return _Event(float(rise.max()), what, label, run, at, at)


def draw_event_zoom(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw one panel of one event over the steps since its onset; shade it and mark spikes.

    An event that was not over when the run ended is not shaded: a band to the end hides more than
    it tells.

    `frame`: rows of `event_zoom_rows` for one panel. `styles` by layer; by default from dark to
    light.
    """
    styles = _styles(frame) if styles is None else styles
    shown = frame[np.isfinite(frame["value"])]
    scale = 100 if frame["panel"].iloc[0] == "accuracy" else 1
    for name, series in shown.groupby("series", sort=False):
        style = styles.get(str(name), {"color": "black", "linewidth": 0.9})
        ax.plot(series["offset"], scale * series["value"], **style)
        begun = series.loc[series["spike"].astype(bool), "offset"]
        mark_spikes(ax, begun, style["color"])
    cross_out(ax, frame.loc[~np.isfinite(frame["value"]), "offset"])
    if shown.empty:
        say_nothing(ax, "no finite value")
    if frame["panel"].iloc[0] == "gradient" and (shown["value"] > 0).any():
        ax.set_yscale("log", nonpositive="mask")
    if frame["panel"].iloc[0] == "loss" and spans_decades(shown["value"]):
        ax.set_yscale("log")
    onset = frame["onset"].iloc[0]
    ax.axvline(0, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
    if _is_shaded(frame):  # one that goes on is no band
        ax.axvspan(0, frame["end"].iloc[0] - onset, color="0.88", linewidth=0, zorder=-1)
    shows(ax, frame, int(onset))
    return ax


def _styles(rows: pd.DataFrame) -> Styles:
    layers = rows.dropna(subset="depth").sort_values("depth", kind="stable")["series"]
    return styles_of(list(layers.astype(str).unique()))


def _panel_name(rows: pd.DataFrame) -> str:
    """Return the name of the vertical axis: what is recorded, by its own name."""
    series = str(rows["series"].iloc[0])
    match str(rows["panel"].iloc[0]):
        case "gradient":
            whole = rows["series"].nunique() == 1 and not rows["depth"].iloc[0]
            return f"{series} /\nits median" if whole else "gradient norm /\nmedian of the layer"
        case "accuracy":
            return two_lines(accuracy_axis(series))
    return two_lines(series)


def _about(rows: pd.DataFrame) -> str:
    """Return the name of the horizontal axis: step and epoch of the onset, and if it is over."""
    onset, per_epoch = rows["onset"].iloc[0], rows["per_epoch"].iloc[0]
    epoch = "" if math.isnan(per_epoch) else f" (epoch {onset / per_epoch:.1f})"
    until = ""
    if rows["end"].isna().any():
        until = "\nnot over when the run ended"
    elif not _is_shaded(rows) and rows["end"].iloc[0] > onset:
        until = f"\nover at step {rows['end'].iloc[0]:,}"
    return f"steps since the onset, step {onset}{epoch}{until}"


def _is_shaded(rows: pd.DataFrame) -> bool:
    """Return whether the event ends within the picture, after it began."""
    lasts = rows["end"].iloc[0] - rows["onset"].iloc[0]
    return bool(pd.notna(lasts) and 0 < lasts <= rows["offset"].max())


def event_zoom_figure(table: pd.DataFrame) -> Figure:
    """Draw one column per event and one row per kind of signal."""
    events = list(table["event"].unique())
    panels = [panel for panel in PANELS if (table["panel"] == panel).any()]
    styles = _styles(table)
    with mpl.rc_context(RC):
        heights = [PANELS[panel] for panel in panels]
        figure = new_figure(1.0 + 3.2 * len(events), 1.0 + 0.48 * sum(heights))
        axes = figure.subplots(
            len(panels), len(events), sharex="col", squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )  # fmt: skip
        for number, (event, column) in enumerate(zip(events, axes.T, strict=True)):
            rows = table[table["event"] == event]
            for panel, ax, row in zip(panels, column, axes, strict=True):
                part = rows[rows["panel"] == panel]
                if part.empty:
                    say_nothing(ax, "not recorded")
                    continue
                draw_event_zoom(part, ax, styles)
                name = _panel_name(part)
                if name not in [other.get_ylabel() for other in row[:number]]:
                    ax.set_ylabel(name)
            column[0].set_title(wrapped(event, 40), pad=9)
            column[-1].set_xlabel(_about(rows))
        align_names(axes.ravel())
        lines = layer_handles(styles, others=False, spikes=bool(table["spike"].any()))
        if any(_is_shaded(rows) for _, rows in table.groupby("event")):
            lines.append(Line2D([], [], color="0.88", linewidth=6, label="the event"))
        if not np.isfinite(table["value"]).all():
            lines.append(not_finite_handle())
        if (of := int(table["of"].iloc[0])) > 1:
            words = f"n = 1 of {of:,} runs in each column"
            lines.append(Line2D([], [], linestyle="", label=words))
        columns = len(lines) if len(events) > 1 else 3
        figure.legend(handles=lines, loc="outside lower center", ncols=columns)
    return figure
