from pathlib import Path

import pytest

from stabkit.analyze.cells import cell_label, group_cells, label, run_label
from tests.analyze.conftest import diagnosed, plant_run


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lr", 0.016, "base lr 0.016"),
        ("model.freeze_patch_embed", True, "frozen patch projection"),
        ("fault.until", 0, "no fault"),
        ("optim.clip_at", None, "no clip at"),
        ("fault.until", 300, "fault until step 300"),
        ("data.num_train", 512, "num train 512"),
        ("lr\n", 1, "lr\\n 1"),
    ],
)
def test_a_setting_is_named_in_words_on_one_line(key: str, value: object, words: str) -> None:
    assert label(key, value) == words


def test_seeds_without_other_settings_are_called_as_their_folder(tmp_path: Path) -> None:
    for seed in range(2):
        plant_run(tmp_path / "plain" / str(seed), seed=seed)
    (cell,) = group_cells(diagnosed(tmp_path / "plain"))
    assert [run_label(cell, run) for run in cell.runs] == ["plain, seed 0", "plain, seed 1"]
    (alone,) = group_cells(diagnosed(tmp_path / "plain" / "1"))
    assert cell_label(alone) == "1"
