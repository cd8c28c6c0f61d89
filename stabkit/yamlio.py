"""YAML as people mean it: `1e-4` is a number, a key written twice is an error."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_VALUES = 1_000_000
DEEP = 1000  # levels that libyaml, which recurses in C, surely has the stack for


class _Strict(yaml.constructor.SafeConstructor):
    """Plain data only, keys that are text and stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} should be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Loader(_Strict, yaml.SafeLoader):
    pass


# With libyaml, where PyYAML was built with it: a twentieth of the time.
class _FastLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


# PyYAML follows YAML 1.1, which reads 1e-4 (no dot) as text; this is YAML 1.2's float.
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)|[-+]?(?:\d+\.\d*|\.\d+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
for _loader in (_Loader, _FastLoader):
    _loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:float"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str) -> Any:
    """Raises ValueError that says where the text is not YAML."""
    try:
        content = yaml.load(text, Loader=_Loader if _may_be_deep(text) else _FastLoader)
        _refuse_endless(content, (), itertools.count())
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except RecursionError:
        raise ValueError("not a configuration: nested too deeply") from None
    return content


def _may_be_deep(text: str) -> bool:
    """Whether it could nest past DEEP: by brackets, or two levels a column of its longest line."""
    longest = max(map(len, text.splitlines()), default=0)
    return text.count("[") + text.count("{") + 2 * longest > DEEP


def _refuse_endless(node: Any, above: tuple[int, ...], seen: Iterator[int]) -> None:
    """Aliases may name what they stand in, or a page of them billions of values."""
    if id(node) in above:
        raise ValueError("not a configuration: an alias (*) names the very thing it stands in")
    if next(seen) > MAX_VALUES:
        raise ValueError(f"not a configuration: it holds more than {MAX_VALUES:,} values")
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _refuse_endless(child, (*above, id(node)), seen)


def read_yaml(path: Path) -> Any:
    """Raises OSError or ValueError."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def dump_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"not valid YAML: {problem}" + (f" (line {mark.line + 1})" if mark else "")
