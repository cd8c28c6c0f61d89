"""The floors of the house, and which module imports which, read from the sources.

`test_architecture.py` holds the code to it, and `house_picture.py` draws it.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

FLOORS = {  # a room of stabkit/ imports only from floors below its own
    "printing": -1, "yamlio": -1, "presets": -1, "cores": -1, "garbage": -1, "version": -1,
    "event_kinds": -1, "code_state": 0, "config": 0, "rundir": 0, "notify": 0,
    "store": 1, "detect": 1,
    "monitor": 2, "integrations": 3, "train": 3, "analyze": 3, "convert": 3,
    "replay": 4, "evaluate": 4, "sweep": 4, "runs": 4, "branch": 5, "study": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip

# The same within a crowded room. Modules that lie beside the inner rooms need no entry: one that
# imports an inner room is above all of them, any other is below all of them.
INNER_FLOORS = {
    "stabkit.train": {"models": 0, "optim": 0, "parallel": 0, "data": 1, "methods": 1},
    "stabkit.monitor": {"probe": 0, "knn": 1, "signals": 1, "measure": 2, "react": 3},
    "stabkit.analyze": {"plots": 0, "report": 1},
    "stabkit.branch": {"judge": 0},
    "benchmarks": {"lib": 0, "calibration": 1, "speed": 1, "growth": 1, "overhead": 1, "gpu": 2,
                   "branches": 2},
}  # fmt: skip

Graph = Mapping[str, frozenset[str]]


class Imports(NamedTuple):
    """Who imports whom: when the code runs, and only for a type checker (`if TYPE_CHECKING`)."""

    at_runtime: Graph
    for_types: Graph


@cache
def modules(package: str) -> dict[str, Path]:
    """Return dotted name -> file of every module of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def import_graph(package: str) -> Imports:
    """Return the imports among the modules of a package, wherever they stand in a file."""
    known, runtime, types = modules(package), {}, {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hidden = {id(node) for block in _type_checking(tree) for node in ast.walk(block)}
        found: tuple[set[str], set[str]] = (set(), set())
        for node in ast.walk(tree):
            found[id(node) in hidden].update(_targets(node, known, path))
        runtime[name], types[name] = (frozenset(targets - {name}) for targets in found)
    return Imports(runtime, types)


def _type_checking(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def _targets(node: ast.AST, known: Mapping[str, Path], path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module:
        assert node.level == 0, f"{path}: relative import"
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            if module in known or node.module in known:
                yield module if module in known else node.module


def merge(one: Graph, other: Graph) -> Graph:
    return {name: one[name] | other[name] for name in one}


def circles(graph: Graph) -> list[set[str]]:
    """Return every set of modules that reach each other (Kosaraju's strong components)."""
    order: list[str] = []
    seen: set[str] = set()
    for name in graph:
        _visit(name, graph, seen, order)
    importers: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            importers[target].add(name)
    backward = {name: frozenset(found) for name, found in importers.items()}
    seen, found = set(), []
    for name in reversed(order):
        component: list[str] = []
        _visit(name, backward, seen, component)
        if len(component) > 1:
            found.append(set(component))
    return found


def _visit(start: str, graph: Graph, seen: set[str], order: list[str]) -> None:
    """Append what `start` reaches to `order`, each after everything that it reaches itself."""
    stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
    seen.add(start)
    while stack:
        name, targets = stack[-1]
        target = next((t for t in targets if t not in seen), None)
        if target is None:
            order.append(name)
            stack.pop()
        else:
            seen.add(target)
            stack.append((target, iter(sorted(graph[target]))))


@cache
def room_graph() -> Graph:
    """Return which room of stabkit/ imports which, types included."""
    found: dict[str, set[str]] = {room: set() for room in FLOORS}
    for name, targets in merge(*import_graph("stabkit")).items():
        for target in targets:
            room, other = ((part + ".").split(".")[1] for part in (name, target))
            if room and other and room != other:
                found[room].add(other)
    return {room: frozenset(others) for room, others in found.items()}


@cache
def upward_imports(parent: str) -> set[tuple[str, str]]:
    """Return the imports within a crowded room that do not go down, as (importer, imported)."""
    floors, graph = INNER_FLOORS[parent], merge(*import_graph(parent.split(".")[0]))

    def inner(name: str) -> str | None:
        """Return the inner room of a module; None for a module that lies beside the rooms."""
        room = name.removeprefix(f"{parent}.").split(".")[0]
        return room if (ROOT / parent.replace(".", "/") / room).is_dir() else None

    own = [name for name in graph if name.startswith(f"{parent}.")]
    above = {
        name for name in own if inner(name) is None and any(map(inner, _reach(name, own, graph)))
    }

    def floor(name: str) -> int:
        room = inner(name)
        if room is None:
            return len(floors) if name in above else -1
        return floors[room]

    return {
        (name, target)
        for name in own
        for target in graph[name] & set(own)
        if inner(name) != inner(target) and floor(target) >= floor(name)
    }


def _reach(start: str, within: list[str], graph: Graph) -> set[str]:
    """Return every module of `within` that `start` imports, directly or through others."""
    order: list[str] = []
    inside = {name: graph[name] & set(within) for name in within}
    _visit(start, inside, set(), order)
    return set(order) - {start}
