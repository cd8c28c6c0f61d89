"""Write the name of each line beside its end, so that no eye has to travel to a legend."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from stabkit.analyze.cells import wrapped

MOST = 8  # names beside one panel; of more, a legend is easier to read
APART = 0.085  # share of the panel's height between two lines of text
SAMPLE = (1.015, 1.085)  # a piece of the line before its name, in shares of the panel's width


class LineEnd(NamedTuple):
    """Where a line ends, what to write there, and how the line looks.

    `value` is in the units of the axis, or their natural logarithm on a logarithmic one.
    """

    value: float
    text: str
    style: dict[str, Any]


def label_ends(ax: Axes, ends: Sequence[LineEnd]) -> None:
    """Write the texts to the right of a panel whose limits are set; close ones are moved apart."""
    limits = np.array(ax.get_ylim())
    low, high = np.log(limits) if ax.get_yscale() == "log" else limits
    ordered = sorted(ends, key=lambda end: end.value)
    texts = [wrapped(end.text, 20) for end in ordered]
    heights = [APART * (1 + text.count("\n")) for text in texts]
    wanted = [(end.value - low) / (high - low) for end in ordered]
    for y, end, text in zip(_moved_apart(wanted, heights), ordered, texts, strict=True):
        ax.plot(SAMPLE, (y, y), transform=ax.transAxes, clip_on=False, linewidth=1.3, **end.style)
        ax.text(
            SAMPLE[1] + 0.015, y, text, transform=ax.transAxes, fontsize=7, color="0.15",
            va="center", ha="left",
        )  # fmt: skip


def _moved_apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return centers in rising order, as far apart as texts of these heights are high.

    They begin no lower than 0; if all do not fit below 1, they are moved down together.
    """
    placed: list[float] = []
    for number, (place, height) in enumerate(zip(wanted, heights, strict=True)):
        room = (heights[number - 1] + height) / 2 if placed else 0.0
        placed.append(max(place, placed[-1] + room if placed else height / 2))
    for number in range(len(placed) - 1, -1, -1):  # back down below the upper edge
        room = heights[number] / 2
        above = placed[number + 1] if number + 1 < len(placed) else None
        roof = 1.0 - room if above is None else above - (heights[number + 1] / 2 + room)
        placed[number] = min(placed[number], roof)
    return placed
