"""The layout in stabkit's own TensorBoard export, so that its tags convert back exactly.

It is read from a file that anybody may have changed: what is not as stabkit writes it is ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any

from stabkit.convert.targets import Target
from stabkit.store.schema import KEYS

FACTS = {"chance": float, "n": int, "k": int, "temperature": float}


def of_layout(layout: Any, tags: Collection[str]) -> dict[str, Target]:
    """Return the targets of those `tags` that the layout names."""
    said = layout.get("tags") if isinstance(layout, dict) else None
    found = {tag: _target(said[tag]) for tag in tags if isinstance(said, dict) and tag in said}
    return {tag: target for tag, target in found.items() if target is not None}


def _target(said: Any) -> Target | None:
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return None
    name, table = said["name"], said.get("table")
    if table == "layers" and _is_signal(said.get("signal")):
        return Target("layer", name, signal=said["signal"])
    if table == "scalars":
        return Target("scalar", name)
    return Target("eval", name, facts=_facts(said)) if table == "evals" else None


def _is_signal(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name not in KEYS


def _facts(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that are numbers and in range."""
    facts: dict[str, Any] = {}
    for name, kind in FACTS.items():
        value: Any = said.get(name)
        top = 1.0 if name == "chance" else 2**15 if name == "k" else 2**31
        if type(value) in (int, kind) and 0 <= value < top:
            facts[name] = kind(value)
    return facts


def order_of(layout: Any) -> list[str]:
    """Return the layers in depth order."""
    said = layout.get("layers") if isinstance(layout, dict) else None
    return [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
