"""Labels of marks hide no curve where there is room: judged by the pixels that are drawn."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

from stabkit.analyze.plots.free_places import MOVABLE, PLACES, box_at, place_labels
from stabkit.analyze.plots.style import new_figure


def test_labels_lie_on_no_curve_and_on_no_other_label() -> None:
    figure = new_figure(4, 3)
    ax = figure.subplots()
    steps = np.arange(100)
    ax.plot(steps, 50 + 0.05 * steps)
    ax.plot(steps, 54 + 0.05 * steps)  # through the place right above the first
    ax.set(ylim=(20, 80))
    labels = [
        ax.annotate(
            "-16.3 pt, not recovered", (x, 50 + 0.05 * x), xytext=(0, 4), ha="center",
            textcoords="offset points", fontsize=6.5, gid=MOVABLE,
        )
        for x in (50, 58, 98)
    ]  # fmt: skip
    place_labels(figure)
    boxes = [_box(label) for label in labels]
    for label in labels:
        label.set_visible(False)
    pixels = _drawn(figure)
    for x0, y0, x1, y1 in boxes:
        assert (pixels[y0:y1, x0:x1] == 255).all()
        assert ax.bbox.x0 <= x0
        assert x1 <= ax.bbox.x1
    for number, (a0, b0, a1, b1) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[:number]:
            assert a1 <= x0 or x1 <= a0 or b1 <= y0 or y1 <= b0


def test_a_label_stays_beside_its_own_mark() -> None:
    figure = new_figure(3, 3)
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    marks = [(5.0, 5.0), (5.3, 6.2)]
    labels = [
        ax.annotate(str(i), at, xytext=(0, 4), textcoords="offset points", gid=MOVABLE)
        for i, at in enumerate(marks)
    ]
    place_labels(figure)
    at = ax.transData.transform(marks)
    for number, label in enumerate(labels):
        x0, y0, x1, y1 = _box(label)
        away = np.hypot(*(np.clip(at, (x0, y0), (x1, y1)) - at).T)
        assert away.argmin() == number


def test_a_label_lies_where_its_box_was_reckoned() -> None:
    """The oracle: matplotlib puts the text at each place, and measures it."""
    figure = new_figure(3, 3)
    ax = figure.subplots()
    label = ax.annotate("-7.6 pt", (0.4, 0.5), xytext=(0, 4), textcoords="offset points")
    figure.draw_without_rendering()
    mark, size = ax.transData.transform((0.4, 0.5)), Text.get_window_extent(label).size
    for place in PLACES:
        label.set(position=(0, place.away), va=place.vertical, ha=place.horizontal)
        label.get_window_extent()  # moves the text
        box = box_at(place, mark, size, figure.dpi / 72)
        np.testing.assert_allclose(Text.get_window_extent(label).extents, box.extents, atol=1)


def _box(label: Annotation) -> tuple[int, ...]:
    label.get_window_extent()
    return tuple(round(value) for value in Text.get_window_extent(label).extents)


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    """Return the picture as gray pixels, from below as matplotlib counts."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3].min(axis=2)
