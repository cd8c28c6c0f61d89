import json
from pathlib import Path

import pytest

from stabkit.analyze.cells import cell_label, group_cells, label, run_label
from tests.analyze.conftest import diagnosed, plant_loop, plant_run


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lr", 0.016, "base lr 0.016"),
        ("model.freeze_patch_embed", True, "frozen patch projection"),
        ("fault.until", 0, "no fault"),
        ("optim.clip_at", None, "clip at not set"),
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


def test_a_setting_that_a_run_lacks_is_left_out_of_its_name(tmp_path: Path) -> None:
    for name, settings in (("a", {"bad": True}), ("b", {"lr": 0.3}), ("c", {"other": 1})):
        run = plant_loop(tmp_path / name)
        (run / "config.yaml").write_text(json.dumps({"kind": "loop", **settings}))
    cells = group_cells(diagnosed(tmp_path))
    assert {cell.runs[0].name: cell_label(cell) for cell in cells} == {
        "a": "bad True", "b": "lr 0.3", "c": "c",
    }  # fmt: skip
    assert {cell_label(cell, without="lr") for cell in cells} == {
        "bad True", "bad not set",
    }  # fmt: skip
