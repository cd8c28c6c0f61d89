import pytest

from stabkit.yamlio import MAX_DEPTH, parse_yaml

DEEP = {
    "brackets": "[" * 1_000_000,
    "brackets on lines": "[\n" * 1_000_000,
    "braces": "{a:\n" * 900,
    "one line": "- " * 1_000_000,
    "keys": "? " * 5000,
    "columns": "".join(" " * i + "a:\n" for i in range(700)),
    "closed": "[" * 900 + "]" * 900,
    "closed maps": "{a:\n" * 900 + "}" * 900,
    "a level too many": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_text_that_nests_too_deeply_is_refused_and_ends_no_process(text: str) -> None:
    """A check must come first: libyaml overflows the stack, which no `except` catches."""
    with pytest.raises(ValueError, match=r"too deeply|not valid YAML"):
        parse_yaml(text)


def test_the_deepest_text_that_is_allowed_is_read() -> None:
    found = parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH - 1):
        (found,) = found
    assert found == []


def test_an_alias_repeats_its_value_and_may_be_used_often() -> None:
    assert parse_yaml("a: &x [1, {b: 2}]\nc: [*x, *x]") == {
        "a": [1, {"b": 2}],
        "c": [[1, {"b": 2}], [1, {"b": 2}]],
    }
