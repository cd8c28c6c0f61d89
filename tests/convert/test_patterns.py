"""The patterns of the package, as old versions of Python match them."""

import re
from pathlib import Path

import pytest

import stabkit

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
