from pathlib import Path

import pytest
import yaml

from stabkit.yamlio import _FastLoader, _Loader, _may_be_deep, parse_yaml


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_both_loaders_read_the_same(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert yaml.load(text, _FastLoader) == yaml.load(text, _Loader)


@pytest.mark.parametrize(
    "text", ["a: 1e-4\nb: [.5, 1E3, 1e, .inf]\nc: 1.\nd: 0x10\ne: yes\nf: 2020-01-01", "", "'x'"]
)
def test_both_loaders_take_the_same_for_numbers(text: str) -> None:
    assert not _may_be_deep(text)
    slow = yaml.load(text, _Loader)
    assert repr(parse_yaml(text)) == repr(slow)


DEEP = {
    "brackets": "[" * 1_000_000,
    "brackets on lines": "[\n" * 1_000_000,
    "braces": "{a:\n" * 900,
    "one line": "- " * 1_000_000,
    "keys": "? " * 5000,
    "columns": "".join(" " * i + "a:\n" for i in range(700)),
    "closed": "[" * 900 + "]" * 900,
    "closed maps": "{a:\n" * 900 + "}" * 900,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_nests_too_deeply_is_refused_and_ends_no_process(text: str) -> None:
    """libyaml alone would overflow the stack, which no `except` catches."""
    with pytest.raises(ValueError, match=r"too deeply|not valid YAML"):
        parse_yaml(text)
