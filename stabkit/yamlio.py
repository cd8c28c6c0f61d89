"""YAML 1.2, strictly: `1e-4` is a number, `1:30` is text, a duplicate key is an error."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_VALUES = 1_000_000  # aliases included
TOO_DEEP = "not a configuration: nested too deeply"
MAX_DEPTH = 100  # libyaml recurses in C: text that nests too deeply would overflow its stack

_CORE = "tag:yaml.org,2002:"
# The spellings of numbers, booleans and null in YAML 1.2's core schema; all else is text. PyYAML
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


# libyaml, where PyYAML was built with it, takes a twentieth of the time.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads plain data only; keys are text and unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _refused(node, "the tag !!map is used for something else")
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, f"key {key!r} should be text")
            if key == "<<":
                raise _refused(
                    key_node, "key '<<' (a merge) is not supported: write the settings out"
                )
            if key in seen:
                raise _refused(key_node, f"duplicate key {key!r}")
            seen.add(key)
        return dict(super().construct_mapping(node, deep))

    def construct_spelled(self, node: yaml.ScalarNode) -> Any:
        """Return a number, a boolean or null. A tag may claim one for text that spells none."""
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
        named = text[-1:] in "fFnN"  # .inf and .nan, which Python writes without the dot
        return float(text.replace(".", "") if named else text)

    def refuse_tag(self, node: yaml.Node) -> Any:
        tag = node.tag.replace(_CORE, "!!")
        raise _refused(node, f"the tag {tag} is not supported: write plain text, numbers and lists")


def _integer(node: yaml.Node, text: str) -> int:
    try:
        return int(text, 8 if "o" in text else 16 if "x" in text else 10)
    except ValueError:  # Python converts no more than some thousand digits
        raise _refused(node, f"a number of {len(text):,} digits is too long") from None


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or 1.2 would take for something else."""


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    **{
        _CORE + kind: yaml.SafeLoader.yaml_constructors[_CORE + kind]
        for kind in ("str", "seq", "map")
    },
    **{_CORE + kind: _Loader.construct_spelled for kind in _SPELLINGS},
    None: _Loader.refuse_tag,
}
for _class in (_Loader, _Dumper):
    for _kind, (_pattern, _first) in _SPELLINGS.items():
        _class.add_implicit_resolver(_CORE + _kind, _pattern, _first)


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises ValueError that says where it is not YAML."""
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None


def _check_size(text: str) -> None:
    """Raise ValueError for text that nests too deeply or, with aliases expanded, is too large."""
    outer: list[tuple[str | None, int]] = []  # open lists and mappings: anchor, values before it
    sizes: dict[str, int] = {}  # values below each anchor
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = outer.pop()
            if anchor is not None:
                sizes[anchor] = count - before
            continue
        if isinstance(event, yaml.CollectionStartEvent):
            outer.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in outer):
                raise ValueError("not a configuration: an alias (*) stands inside its own value")
            count += sizes.get(event.anchor or "", 1)
        if len(outer) > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        if count > MAX_VALUES:
            raise ValueError(f"not a configuration: it holds more than {MAX_VALUES:,} values")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises OSError or ValueError."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting under the name by which runs are compared: `optim.lr`."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def dump_yaml(content: Any) -> str:
    """Return plain data as YAML text."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "maximum nesting depth" in problem:  # libyaml's own limit, met before ours
        return TOO_DEEP
    return f"not valid YAML: {problem}" + (f" (line {mark.line + 1})" if mark else "")
