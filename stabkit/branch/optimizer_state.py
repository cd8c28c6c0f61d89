"""Carry the state of an optimizer over to other settings, with the moments kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stabkit.config import OptimConfig

PLACES = ("params", "lr", "step")  # keys of a group that are no settings


def carried_over(
    state: Mapping[str, Any], own: Mapping[str, Any], before: OptimConfig, after: OptimConfig
) -> dict[str, Any]:
    """Return the `state_dict` of an optimizer for one with the settings `after`.

    `own` is the `state_dict` of a fresh one with these settings. The settings in its groups are
    used, because loading a `state_dict` sets them too. Moments go on as they are: the corrected
    moment, by which Adam divides, is the same before and after a change of the betas, and before
    and after a change between AdamW, which stores uncorrected moments, and StableAdamW, which
    stores corrected ones.
    """
    if before == after:
        return dict(state)
    groups = [
        dict(there)
        if before.name != after.name
        else dict(here) | {key: value for key, value in there.items() if key not in PLACES}
        for here, there in zip(state["param_groups"], own["param_groups"], strict=True)
    ]
    moments = {
        number: _moments(one, before, after) if "exp_avg_sq" in one else dict(one)
        for number, one in state["state"].items()
    }
    return {"state": moments, "param_groups": groups}


def _moments(state: Mapping[str, Any], before: OptimConfig, after: OptimConfig) -> dict[str, Any]:
    steps = int(state["step"])
    found = dict(state)
    for name, one, other in (
        ("exp_avg", before.beta1, after.beta1),
        ("exp_avg_sq", before.beta2, after.beta2),
    ):
        here, there = _share(before.name, one, steps), _share(after.name, other, steps)
        if there != here:
            found[name] = state[name] * (there / here)
    if before.name != after.name:
        found["step"] = torch.tensor(float(steps)) if after.name == "adamw" else steps
    return found


def _share(name: str, beta: float, steps: int) -> float:
    """Return the stored moment divided by the corrected one."""
    return 1 - beta**steps if name in ("adamw", "lamb") else 1.0


def forgotten(
    state: Mapping[str, Any], layers: Sequence[str], reset: Sequence[str]
) -> dict[str, Any]:
    """Return a `state_dict` without what it holds of the layers in `reset`; `all` means all.

    `layers`: that of each parameter, in the order of the groups. An optimizer begins anew with a
    parameter that it knows nothing of, its count of steps included: a second moment alone cannot be
    reset, since both moments are corrected by one count.
    """
    kept = {
        number: one
        for number, one in state["state"].items()
        if "all" not in reset and layers[number] not in reset
    }
    return dict(state) | {"state": kept}


def without_first_moments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `state_dict` of Adam with first moments of 0; second moments and steps stay."""
    kept = {
        number: dict(one) | {"exp_avg": torch.zeros_like(one["exp_avg"])}
        for number, one in state["state"].items()
    }
    return dict(state) | {"state": kept}
