"""The text of a note lies within its panel, however low that is."""

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
