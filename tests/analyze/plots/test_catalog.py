"""Every figure has one complete record, and the pages of the docs name it."""

import re
from pathlib import Path

import pytest

from stabkit.analyze.plots import PLOTS

GALLERY = Path(__file__).parents[3] / "docs" / "gallery.md"


@pytest.mark.parametrize("name", PLOTS)
def test_a_record_says_all_that_is_shown_of_its_figure(name: str) -> None:
    plot = PLOTS[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", plot.name)
    assert plot.title[0].isupper()
    assert plot.about[0].islower(), "the pages begin it with a capital letter where they need one"
    assert plot.look[-1] in ".?"
    assert not any(text.endswith(".") for text in (plot.title, plot.about))
    page = GALLERY.read_text("utf-8")
    assert f"## {name}\n" in page
    assert " ".join(plot.look.split()) in " ".join(page.split())


def test_the_report_has_one_place_for_each_figure() -> None:
    places = [plot.place for plot in PLOTS.values() if plot.place is not None]
    assert sorted(places) == list(range(1, len(places) + 1))


@pytest.mark.parametrize("name", [name for name, plot in PLOTS.items() if plot.panel is None])
def test_a_figure_without_a_panel_says_nothing_of_panels(name: str) -> None:
    plot = PLOTS[name]
    assert plot.divided is plot.axis is plot.apart is None
