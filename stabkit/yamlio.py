"""YAML 1.2 as people mean it: `1e-4` is a number, `1:30` text, a key written twice an error."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_VALUES = 1_000_000
DEEP = 1000  # levels that libyaml, which recurses in C, surely has the stack for


_CORE = "tag:yaml.org,2002:"
# Plain text is a number, a boolean or null in these spellings alone: YAML 1.2's core schema. PyYAML
# follows YAML 1.1, where 1:30 is 90, 0240 is 160, off is false and 1e-4 is text.
_SPELLINGS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+0123456789."),
    ),
}
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")


class _Strict(yaml.constructor.SafeConstructor):
    """Plain data only, keys that are text and stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _refused(node, "the tag !!map stands before something else")
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, f"key {key!r} should be text")
            if key == "<<":
                raise _refused(key_node, "key '<<' (a merge) is not read: write its settings out")
            if key in seen:
                raise _refused(key_node, f"key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def spelled(self, node: yaml.ScalarNode) -> Any:
        """A number, a boolean or null; a tag may claim one for text that spells none."""
        kind = node.tag.removeprefix(_CORE)
        text = self.construct_scalar(node)
        if not _SPELLINGS[kind][0].match(text):
            raise _refused(node, f"{text!r} is no {kind}; leave out the tag !!{kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if _LEADING_ZERO.match(text):
            plain = re.sub(r"\A([-+]?)0+(?=[0-9])", r"\1", text)
            problem = f"{text} begins with a zero, which may mean octal"
            raise _refused(node, f"{problem}: write {plain} for the number, '{text}' for the text")
        if kind == "int":
            return _integer(node, text)
        named = text[-1:] in "fFnN"  # .inf and .nan, which Python spells without the dot
        return float(text.replace(".", "") if named else text)

    def no_tag(self, node: yaml.Node) -> Any:
        tag = node.tag.replace(_CORE, "!!")
        raise _refused(node, f"the tag {tag} is not read: write plain text, numbers and lists")


def _integer(node: yaml.Node, text: str) -> int:
    try:
        return int(text, 8 if "o" in text else 16 if "x" in text else 10)
    except ValueError:  # Python reads no more than some thousand digits
        raise _refused(node, f"a number of {len(text):,} digits is too long") from None


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(_Strict, yaml.SafeLoader):
    pass


# With libyaml, where PyYAML was built with it: a twentieth of the time.
class _FastLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


for _loader in (_Loader, _FastLoader):
    _loader.yaml_implicit_resolvers = {}
    _loader.yaml_constructors = {
        **{
            _CORE + kind: yaml.SafeLoader.yaml_constructors[_CORE + kind]
            for kind in ("str", "seq", "map")
        },
        **{_CORE + kind: _Strict.spelled for kind in _SPELLINGS},
        None: _Strict.no_tag,
    }
for _reader in (_Loader, _FastLoader, _Dumper):
    for _kind, (_pattern, _first) in _SPELLINGS.items():
        _reader.add_implicit_resolver(_CORE + _kind, _pattern, _first)


def parse_yaml(text: str) -> Any:
    """Raises ValueError that says where the text is not YAML."""
    try:
        content = yaml.load(text, Loader=_Loader if _may_be_deep(text) else _FastLoader)
        _refuse_endless(content, (), itertools.count())
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
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
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"not valid YAML: {problem}" + (f" (line {mark.line + 1})" if mark else "")
