"""Say in which parameter group of the optimizer a layer is trained, by what a Monitor recorded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis

ALWAYS = ("lr", "weight_decay")  # named for every group; other settings only where groups differ
MOST = 3  # groups of one layer that are told


class Group(NamedTuple):
    """A parameter group that holds a layer, or a part of it."""

    number: int  # through all optimizers, as in `lr.1`
    share: float  # of the layer's elements that are in a group
    words: str  # `param group 1 (lr 0.0003, weight_decay 0.05)`


def groups_of(run: Diagnosis, layer: str, step: int) -> list[Group]:
    """Return the groups that hold a layer at a step, the one with most of it first.

    The learning rate told is the one of that step. The list is empty if the optimizers have one
    group alone, and if no Monitor recorded them.
    """
    entries = [entry for entry in run.stored.log_entries() if entry.get("kind") == "param_groups"]
    try:
        recorded = [entry["groups"] for entry in entries if int(entry["step"]) <= step][-1:]
        return _holding(recorded[0], layer, step, run.tables.scalars()) if recorded else []
    except (AttributeError, KeyError, TypeError, ValueError):  # a damaged entry tells nothing
        return []


def tell_groups(shown: str, groups: Sequence[Group]) -> str:
    """Say how a layer is trained that is called `shown`: `h.2 is in param group 1 (lr 0.0003)`."""
    if len(groups) == 1:
        return f"{shown} is in {groups[0].words}"
    told = [f"{_percent(group.share)} in {group.words}" for group in groups[:MOST]]
    if len(groups) > MOST:
        told.append(f"the rest in {len(groups) - MOST} more")
    return f"{shown} is {', '.join(told[:-1])} and {told[-1]}"


def rates_of(scalars: pd.DataFrame, number: int) -> "pd.Series[float]":
    """Return the recorded learning rate of a group, by step.

    The rate of a group that is not the first is recorded where it differs from that of the first.
    """
    first, own = (
        scalars.loc[scalars["name"] == name].set_index("step")["value"].sort_index()
        for name in ("lr", f"lr.{number}")
    )
    return own.combine_first(first) if number else first


def _holding(
    recorded: Sequence[Mapping[str, Any]], layer: str, step: int, scalars: pd.DataFrame
) -> list[Group]:
    held = [int(group["elements"].get(layer, 0)) for group in recorded]
    found = []
    for group, elements in zip(recorded, held, strict=True):
        if elements:
            number = int(group["group"])
            words = f"param group {number} ({_settings(group, recorded, scalars, step)})"
            found.append(Group(number, elements / sum(held), words))
    return sorted(found, key=lambda group: -group.share)


def _settings(
    group: Mapping[str, Any],
    recorded: Sequence[Mapping[str, Any]],
    scalars: pd.DataFrame,
    step: int,
) -> str:
    settings = dict(group["settings"])
    rates = rates_of(scalars, int(group["group"]))
    rates = rates[rates.index <= step]
    if len(rates):
        settings["lr"] = float(rates.iloc[-1])
    optimizers = {other["optimizer"] for other in recorded}
    alike = [other["settings"] for other in recorded if other["optimizer"] == group["optimizer"]]
    differ = [
        name
        for name in settings
        if name not in (*ALWAYS, "initial_lr")
        and any(other.get(name) != settings[name] for other in alike)
    ]
    names = [*(name for name in ALWAYS if name in settings), *differ]
    return ", ".join(
        [
            *([f"'{group['name']}'"] if "name" in group else []),
            *([str(group["optimizer"])] if len(optimizers) > 1 else []),
            *(f"{name} {_text(settings[name])}" for name in names),
        ]
    )


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
