"""Define the look of every figure: printable, color-blind safe, legible in gray."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from stabkit.printing import lines

RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 150,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
}
Color = tuple[float, float, float]
NAME_AT = 44  # points between a vertical axis and its name: tick labels of six digits fit between
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def ramp(count: int) -> list[Color]:
    """Return colors from dark to light. Their lightness alone tells them apart in gray prints."""
    palette = sns.color_palette("viridis", n_colors=max(2, count + 1))
    return [(r, g, b) for r, g, b in palette[:count]]


def run_look(color: Color, unstable: bool) -> dict[str, Any]:
    """Return the look of a run's mark: hollow if it was unstable. Its shape says what it is."""
    if unstable:
        return {"color": color, "markerfacecolor": "white", "markeredgewidth": 1.2, "zorder": 3}
    return {"color": color, "markeredgecolor": "black", "markeredgewidth": 0.4}


def unstable_handle() -> Line2D:
    """Return the legend of the marks of unstable runs."""
    look = run_look((0.3, 0.3, 0.3), True)
    return Line2D([], [], label="hollow: unstable run", marker="o", linestyle="", **look)


class ShownFigure(Figure):
    """A figure that a notebook shows: outside pyplot, IPython knows no way to show one."""

    def _repr_png_(self) -> bytes:
        as_written(self)
        png = BytesIO()
        with mpl.rc_context(RC):
            self.savefig(png, format="png", dpi=100)
        return png.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches. It does not use pyplot, so it needs no screen."""
    return ShownFigure(figsize=(width, height), layout="constrained")


def side_by_side(panels: int, most: int) -> int:
    """Return how many panels stand in a row, at most `most`, so that few places stay empty."""
    return -(-panels // -(-panels // most))


def align_names(axes: Iterable[Axes]) -> None:
    """Put the names of vertical axes at one distance from their axes.

    `Figure.align_ylabels` does so too, but measures the ticks of all panels for each of them, which
    takes as long as all the rest of a figure of fifteen panels.
    """
    for ax in axes:
        left = ScaledTranslation(-NAME_AT / 72, 0, ax.figure.dpi_scale_trans)
        ax.yaxis.set_label_coords(0, 0.5, transform=ax.transAxes + left)


def as_written(figure: Figure) -> Figure:
    """Show every text as it is written.

    A dollar sign in a name is a letter, not mathematics, which a single one would break. Characters
    that hide or reorder a label are shown as escapes.
    """
    for text in figure.findobj(Text):
        if (shown := lines(text.get_text())) != text.get_text():
            text.set_text(shown)
        # matplotlib itself writes the ticks of a log axis as mathematics
        if "mathdefault" not in text.get_text() and "$" in text.get_text():
            text.set_parse_math(False)
    return figure


@contextmanager
def arranged(figure: Figure) -> Iterator[Bbox]:
    """Arrange the panels of a figure once, and yield the box around all of it, in inches.

    Every `savefig` would arrange them again, which takes longer than to draw them.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    try:
        yield figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    finally:
        figure.set_layout_engine(engine)


def rate_ticks(ax: Axes, rates: Sequence[float], most: int) -> None:
    """Set a logarithmic axis of learning rates; label each rate if there are at most `most`."""
    ax.set_xscale("log")
    if len(rates) <= most:
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_formatter(NullFormatter())
