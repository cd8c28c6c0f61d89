import pytest

from stabkit.analyze.cells import label


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lr", 0.016, "base lr 0.016"),
        ("model.freeze_patch_embed", True, "frozen patch projection"),
        ("fault.until", 0, "no fault"),
        ("fault.until", 300, "fault until step 300"),
        ("data.num_train", 512, "num train 512"),
        ("lr\n", 1, "lr\\n 1"),
    ],
)
def test_a_setting_is_named_in_words_on_one_line(key: str, value: object, words: str) -> None:
    assert label(key, value) == words
