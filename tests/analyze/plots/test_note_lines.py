"""The text of a note lies within its panel, however low that is."""

import itertools
from pathlib import Path

import pytest

from stabkit.analyze.plots import figure_of
from stabkit.cli import main
from tests.analyze.conftest import diagnosed, plant_run


@pytest.mark.parametrize("name", ["knn", "loss", "grad-norms"])
def test_the_text_of_a_note_is_not_cut_off(name: str, tmp_path: Path) -> None:
    for i in range(3):
        plant_run(tmp_path / str(i), f"optim.lr=0.0{i + 1}", spike=i == 1)
    text = "someone changed the lr, and changed it back"
    assert main(["note", str(tmp_path / "1"), "200", text]) == 0
    figure = figure_of(name, diagnosed(tmp_path))
    figure.draw_without_rendering()
    labels = [
        (label, ax)
        for ax in figure.axes
        for label in ax.texts
        if label.get_text().startswith("someone")
    ]
    assert labels
    for label, ax in labels:
        assert label.get_window_extent().y0 >= ax.get_window_extent().y0


def test_labels_of_notes_do_not_overlap_and_stand_in_the_top_panel(tmp_path: Path) -> None:
    plant_run(tmp_path / "a", spike=True)
    for step, text in ((200, "lr 0.001 to 0.1"), (212, "lr 0.1 to 0.001"), (235, "later")):
        assert main(["note", str(tmp_path / "a"), str(step), text]) == 0
    runs = diagnosed(tmp_path)
    for name in ("knn", "loss", "grad-norms"):
        figure = figure_of(name, runs)
        figure.draw_without_rendering()
        for ax in figure.axes:
            labels = [t for t in ax.texts if t.get_rotation() == 90 and t.get_zorder() > 3]
            boxes = [label.get_window_extent() for label in labels]
            assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes)), name
    zoom = figure_of("event-zoom", runs)
    texts = [[t.get_text() for t in ax.texts if "later" in t.get_text()] for ax in zoom.axes]
    assert [len(found) for found in texts] == [1, 0, 0]
