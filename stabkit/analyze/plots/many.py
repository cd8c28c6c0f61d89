"""Limit what a figure of very many runs draws, and say in the figure what it leaves out.

The table of a figure always holds everything. Figures of at most so many things are drawn whole.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.printing import counted

ONE_BY_ONE = 100  # curves in one panel; more would hide one another
WORST = 40  # curves that are drawn of more than that
PANELS = 12
ROWS = 40  # rows of a table or a legend, and values along one axis of a map
PAIRS = 200  # pairs of runs, each in a row of its own

Item = TypeVar("Item")


class TooManyError(DoesNotApplyError):
    """The runs are too many for a figure, which would otherwise apply to them."""


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items (at least 2), evenly spaced, the first and last included.

    Items that are in order are so represented over their whole range.
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def seed_or_run(seeds: "pd.Series[Any]") -> str:
    """Return what tells the runs of a cell apart: "seed", if every run has one on record."""
    return "seed" if seeds.notna().all() else "run"


def seeds_drawn(counts: "pd.Series[int]", seeds: "pd.Series[Any]") -> str:
    """Say how many runs of a cell are drawn, given the number of each cell, and their seeds."""
    few, most = int(counts.min()), int(counts.max())
    if few < most:
        return f"n = {few} to {most}"
    noun = seed_or_run(seeds)
    return counted(few, noun) if noun == "run" else f"n = {counted(few, noun)}"


def seeds_of_ends(table: pd.DataFrame) -> str:
    """Say how many runs are drawn, and how many of them a line end is not the mean of."""
    said = seeds_drawn(table.groupby(["panel", "curve"])["run"].nunique(), table["seed"])
    runs = table.drop_duplicates("run")
    some = runs.groupby(["panel", "curve"])["finished"].transform("any")
    without = int((some & ~runs["finished"]).sum())
    return said + (f"; means without {counted(without, 'unfinished run')}" if without else "")


def without_unfinished(table: pd.DataFrame) -> str:
    """Say how many unfinished runs a mean leaves out, by the column `unfinished`; "" for none."""
    others = int(table["unfinished"].max())
    return f"without {counted(others, 'unfinished run')}" if others else ""


def joined_notes(*notes: str) -> str:
    """Return notes in one line. Empty notes are none."""
    return "; ".join(note for note in notes if note)


def say_left_out(figure: Figure, *notes: str) -> None:
    """Write below a figure what it leaves out."""
    if any(notes):
        figure.supxlabel(joined_notes(*notes), fontsize=7, color="0.3")
