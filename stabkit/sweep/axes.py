"""The axes of a sweep, their product, and the combinations that `exclude` leaves out."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Axes = list[list[dict[str, Any]]]


def axes_of(
    grid: Mapping[str, Sequence[Any]],
    pairs: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
) -> Axes:
    """Return the axes: one a key of `grid`, one for `pairs`, one for the seeds.

    An overridden key does not vary.
    """
    axes = [[{key: v} for v in values] for key, values in grid.items() if key not in overrides]
    paired = {key: values for key, values in pairs.items() if key not in overrides}
    if paired:
        rows = [dict(zip(paired, row, strict=True)) for row in zip(*paired.values(), strict=True)]
        if len(paired) < len(pairs):  # without the overridden key, two rows may be equal
            rows = [row for i, row in enumerate(rows) if row not in rows[:i]]
        axes.append(rows)
    seeds = [overrides["seed"]] if "seed" in overrides else seeds
    axes.append([{"seed": seed} for seed in seeds])
    return axes


def product(axes: Axes) -> Iterator[dict[str, Any]]:
    """Yield every combination; the last axis varies fastest."""
    for combination in itertools.product(*axes):
        yield {key: value for part in combination for key, value in part.items()}


def idle_rules(
    rules: Sequence[Mapping[str, Any]], varied: Collection[str], axes: Axes
) -> Iterator[str]:
    """Yield a line for each rule of `exclude` that excludes nothing."""
    for rule in rules:
        fixed = [key for key in rule if key not in varied]
        if not rule:
            yield "exclude: a rule without a key would exclude every run"
        elif fixed:
            yield f"exclude {rule}: {', '.join(fixed)} does not vary, only keys of grid and zip do"
        elif not all(_meets(axis, rule) for axis in axes):
            yield f"exclude {rule}: no run is like that"


def _meets(axis: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]) -> bool:
    """Return whether a point of the axis agrees with the rule in the keys that both have.

    Axes share no key, so a rule that every axis can meet is met by a run.
    """
    return any(all(point[key] == rule[key] for key in rule if key in point) for point in axis)


def excluded(settings: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a rule matches all its keys."""
    return any(all(k in settings and settings[k] == v for k, v in rule.items()) for rule in rules)
