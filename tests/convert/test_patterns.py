"""The patterns of the package, as old versions of Python match them."""

import math
import re
from pathlib import Path

import pytest

import stabkit
from stabkit.convert.pairs import pairs_of

POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")


@pytest.mark.parametrize("pattern", [r"(?:\w++\.)*+", r"(e\d)?+", r"(?:a|b)++", r"(ab){2,3}+"])
def test_a_possessive_group_is_seen(pattern: str) -> None:
    assert POSSESSIVE_GROUP.search(pattern)
    assert not POSSESSIVE_GROUP.search(r"\d++\.?+(?:\w++\.)*[)]\w*+")


def test_no_group_is_possessive() -> None:
    """Python 3.11.0 to 3.11.4 match `(?:e\\d++)?+` in `1e`, where it does not fit."""
    sources = sorted(Path(stabkit.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    found = [str(path) for path in sources if POSSESSIVE_GROUP.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("loss: 2.3/2.5", {"loss": 2.3}),
        ("loss 2.5, val acc 0.310.", {"loss": 2.5, "val acc": 0.31}),
        ("step 3 loss 2.3 eta 5m", {"step": 3.0, "loss": 2.3}),
        ("params 7b loss 3", {"loss": 3.0}),
        ("tokens 1.5K rate 2M size 3k", {"tokens": 1.5e3, "rate": 2e6, "size": 3e3}),
        ("val_acc: 10/200", {"val_acc": 0.05}),
        ("epoch 3/10 loss 2.", {"epoch": 3.0, "loss": 2.0}),
        ("step 5 / 10. lr 1e-3/2e-3 time 7/8s", {"step": 5, "lr": 1e-3, "time": 7}),
        ("step 1,000/5,000 loss 2", {"step": "1,000", "loss": 2}),
        ("loss 0.5.3 acc 3#", {}),
        ("a: -1.#IND b 1.#INF00 c -nan(ind)", {"a": math.nan, "b": math.inf, "c": math.nan}),
    ],
)
def test_numbers_and_what_stands_behind_them(line: str, found: dict[str, float]) -> None:
    assert pairs_of(line) == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("text", ["1" * 10**5, "1," * 10**5, "loss " * 10**4, "1/" * 10**5])
def test_a_long_line_is_read_at_once(text: str) -> None:
    assert pairs_of(text) == {}  # with backtracking this takes minutes
