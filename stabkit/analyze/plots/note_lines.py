"""Draw the notes on runs into the figures that have an axis of steps.

A drawing function tags its axes with the runs that it shows (`shows`); `draw_notes` does the rest.
"""

import json
import warnings
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.notes import RESUMED
from stabkit.analyze.text import shortened
from stabkit.rundir import Note

NEAR = 9  # points: the height of a label
LINES = 3  # notes of one label
LABELED = 6  # notes of one panel; the labels of more would hide each other
FEW = 3  # runs of one panel; among more, lines of single resumes would be clutter
LONGEST, FEWEST = 22, 8  # characters of a label
LETTER = 4.2  # points: the width of a letter of a label
COLOR = "0.3"
HALO = [withStroke(linewidth=1.5, foreground="white")]  # to be read on curves and colors


Notes = Mapping[str, Sequence[Note]]  # by the name of a run


def shows(ax: Axes, frame: pd.DataFrame, since: int = 0) -> None:
    """Tag an axis of steps since the step `since` with the runs that it shows."""
    ax.set_gid(json.dumps([since, *(str(run) for run in frame["run"].unique())]))


def draw_notes(figure: Figure, runs: Diagnoses) -> Figure:
    """Draw a thin line at each note of the runs that a tagged axis shows, with its text on top."""
    return write_notes(figure, notes_by_name(runs))


def notes_by_name(runs: Diagnoses) -> Notes:
    """Return the notes of each run by its name and by its label: a table has one or the other."""
    if not any(run.notes for run in runs):
        return {}
    return {
        name: run.notes
        for cell in group_cells(runs)
        for run in cell.runs
        for name in (run.name, run_label(cell, run))
    }


def write_notes(figure: Figure, notes: Notes) -> Figure:
    """Draw `notes` into the tagged axes of a figure; panels above each other get one label."""
    labeled: list[Axes] = []
    if notes:
        with warnings.catch_warnings():  # they come when it is drawn
            warnings.simplefilter("ignore")
            figure.draw_without_rendering()  # lays it out: labels depend on the sizes of panels
    for ax in figure.axes if notes else []:
        since, *named = json.loads(ax.get_gid() or "[0]")
        under = any(
            ax.get_shared_x_axes().joined(ax, other) and ax.get_gid() == other.get_gid()
            for other in labeled
        )
        shown = [(step - since, text) for step, text in notes_of(named, notes)]
        _draw(ax, shown, with_text=not under)
        labeled += [ax] if shown else []
    return figure


def notes_of(named: Sequence[str], notes: Notes) -> list[tuple[int, str]]:
    """Return step and text of the notes of these runs; the same note on several runs once.

    Exact resumes, which change no value, are left out where many runs are shown.
    """
    found = [
        (note.step, note.text)
        for run in named
        for note in notes.get(run, [])
        if note.text != RESUMED or len(named) <= FEW
    ]
    return sorted(set(found))


def _draw(ax: Axes, notes: Sequence[tuple[int, str]], *, with_text: bool) -> None:
    low, high = ax.get_xlim()
    inside = [(step, text) for step, text in notes if low <= step <= high]
    for step, _ in inside:
        ax.axvline(step, color=COLOR, linewidth=0.7, linestyle=(0, (4, 2)), zorder=2.5)
    box, point = ax.get_window_extent(), ax.figure.dpi / 72
    room = min(LONGEST, max(FEWEST, int(box.height / point / LETTER)))
    near = (high - low) * NEAR * point / box.width
    for step, texts in _joined(inside, near)[:LABELED] if with_text else []:
        lines = [shortened(text, room) for text in texts[:LINES]]
        lines += [f"and {len(texts) - LINES} more"] if len(texts) > LINES else []
        label = ax.annotate(
            "\n".join(lines), (step, 0.98), xycoords=ax.get_xaxis_transform(), xytext=(2, 0),
            textcoords="offset points", rotation=90, va="top", ha="left", fontsize=6, color=COLOR,
            clip_on=True, path_effects=HALO, zorder=3.8,
        )  # fmt: skip
        label.set_parse_math(False)
    ax.set_xlim(low, high)


def _joined(notes: Sequence[tuple[int, str]], near: float) -> list[tuple[int, list[str]]]:
    """Return one label, of several lines, for notes so near that theirs would overlap.

    It stands at the last of them. A label is the wider the more lines it has.
    """
    found: list[tuple[int, list[str]]] = []
    for step, text in notes:
        if found and step - found[-1][0] < near * min(len(found[-1][1]), LINES + 1):
            found[-1] = step, [*found[-1][1], text]
        else:
            found.append((step, [text]))
    return found
