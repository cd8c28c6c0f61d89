"""Move the labels of marks to where they hide the least of the curves."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Points = NDArray[np.floating[Any]]

MOVABLE = "movable"  # the gid of a label that may move
AWAY = (4, 9, 14, 20, 27, 35)  # points between a mark and its label


class Place(NamedTuple):
    """Where a label may be: points above its mark, and which sides of it are at the mark."""

    away: float
    vertical: str  # "top" or "bottom"
    horizontal: str  # "left", "center" or "right"


PLACES = [
    Place(sign * away, vertical, horizontal)
    for away in AWAY
    for sign, vertical in ((1, "bottom"), (-1, "top"))
    for horizontal in ("center", "left", "right")
]
SHARE = {"left": 0.0, "center": 0.5, "right": 1.0}  # of the width that lies left of the mark
FAR_WORSE = 1000  # pixels of a curve: to hide another text, to leave the panel


def place_labels(figure: Figure) -> None:
    """Place the labels tagged `MOVABLE`: offset from their marks by points.

    Each goes where it hides few pixels of curves, near its own mark, and nearer than to another
    mark. Call this when the limits of the axes are set; it lays the figure out.
    """
    for ax in figure.axes:
        labels = [t for t in ax.texts if isinstance(t, Annotation) and t.get_gid() == MOVABLE]
        if labels:
            figure.draw_without_rendering()
            _place(ax, labels)


def _place(ax: Axes, labels: list[Annotation]) -> None:
    curves, marks = _pixels(ax), ax.transData.transform([label.xy for label in labels])
    taken = [text.get_window_extent() for text in ax.texts if text not in labels]

    def cost(box: Bbox, mark: Points, place: Place) -> float:
        hidden = np.all((curves > box.min) & (curves < box.max), axis=1).sum()
        apart = np.hypot(*(np.clip(marks, box.min, box.max) - marks).T)
        astray = apart.min() < np.hypot(*(np.clip(mark, box.min, box.max) - mark))
        outside = np.sum(box.min < ax.bbox.min) + np.sum(box.max > ax.bbox.max)
        bad = outside + sum(box.overlaps(other) for other in taken)
        return float(hidden + abs(place.away) + 50 * astray + FAR_WORSE * bad)

    point = ax.figure.dpi / 72  # pixels
    for label, mark in zip(labels, marks, strict=True):
        size = np.array(Text.get_window_extent(label).size)  # without the line to its mark
        boxes = [box_at(place, mark, size, point) for place in PLACES]
        costs = [cost(box.padded(2), mark, at) for box, at in zip(boxes, PLACES, strict=True)]
        best = int(np.argmin(costs))
        away, vertical, horizontal = PLACES[best]
        label.set(position=(0, away), va=vertical, ha=horizontal)
        taken.append(boxes[best])


def box_at(place: Place, mark: Points, size: Points, point: float) -> Bbox:
    """Return the box of a label, in pixels; `point`: how many pixels a point has."""
    left = mark[0] - SHARE[place.horizontal] * size[0]
    low = mark[1] + point * place.away - (size[1] if place.vertical == "top" else 0.0)
    return Bbox.from_bounds(left, low, *size)


def _pixels(ax: Axes) -> Points:
    """Return points a pixel apart on all curves: shape (points, 2)."""
    found = [np.empty((0, 2))]
    for line in ax.get_lines():
        points = line.get_transform().transform(line.get_xydata())
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            along = np.r_[0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
            at = np.arange(0, along[-1] + 1)
            found.append(np.column_stack([np.interp(at, along, points[:, i]) for i in (0, 1)]))
    return np.concatenate(found)
