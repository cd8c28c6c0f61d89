"""Move the labels of marks to where they hide the least of the curves."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

Points = NDArray[np.floating[Any]]

MOVABLE = "movable"  # the gid of a label that may move
AWAY = (4, 9, 14, 20, 27, 35)  # points between a mark and its label
# Where a label may be: points above its mark, and which side of the label is at the mark.
PLACES = [
    {"position": (0, sign * away), "va": side, "ha": at}
    for away in AWAY
    for sign, side in ((1, "bottom"), (-1, "top"))
    for at in ("center", "left", "right")
]
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

    def cost(label: Annotation, mark: Points, place: dict[str, Any]) -> float:
        label.set(**place)
        box = _box(label).padded(2)
        hidden = ((curves > box.min) & (curves < box.max)).all(axis=1).sum()
        apart = np.hypot(*(np.clip(marks, box.min, box.max) - marks).T)
        astray = apart.min() < np.hypot(*(np.clip(mark, box.min, box.max) - mark))
        outside = (box.min < ax.bbox.min).sum() + (box.max > ax.bbox.max).sum()
        bad = outside + sum(box.overlaps(other) for other in taken)
        return float(hidden + abs(place["position"][1]) + 50 * astray + FAR_WORSE * bad)

    for label, mark in zip(labels, marks, strict=True):
        label.set(**min(PLACES, key=lambda place: cost(label, mark, place)))
        taken.append(_box(label))


def _box(label: Annotation) -> Any:
    """Return the box of the text in pixels, without the line to its mark."""
    label.get_window_extent()  # moves the text; its own result holds the line as well
    return Text.get_window_extent(label)


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
