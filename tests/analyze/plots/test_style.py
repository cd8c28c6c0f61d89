"""The look that all figures share."""

import matplotlib as mpl
import pytest

from stabkit.analyze.plots.style import RC, align_names, new_figure


def test_names_of_axes_stand_in_one_line_and_on_no_tick() -> None:
    with mpl.rc_context(RC):
        figure = new_figure(4, 4)
        axes = figure.subplots(3, 1)
    for ax, high in zip(axes, (1, 0.0005, 1e5), strict=True):
        ax.set(ylim=(0, high), ylabel="gradient norm /\nmedian of the layer")
    align_names(axes)
    figure.draw_without_rendering()
    point = figure.dpi / 72
    names = [ax.yaxis.label.get_window_extent() for ax in axes]
    assert [name.x1 for name in names] == pytest.approx([names[0].x1] * 3, abs=1)
    for ax, name in zip(axes, names, strict=True):
        assert name.x0 >= 0
        ticks = [text.get_window_extent() for text in ax.get_yticklabels() if text.get_text()]
        assert ticks
        assert min(tick.x0 for tick in ticks) - name.x1 > point
