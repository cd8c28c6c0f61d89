"""Settings in units of the run: a share of its steps instead of a number of them.

Whether training is stable depends on such ratios more than on the numbers (warm-up is 40 % of the
run in MoCo v3, Adam's memory 3 %), so that a shorter copy of an experiment keeps the shares. They
are resolved to numbers before anything else: `config.yaml` and the run id hold the numbers.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stabkit.config.method import MethodConfig
from stabkit.config.optim import OptimConfig
from stabkit.config.schedule import lr_at
from stabkit.config.section import Section

# The setting that each share is resolved to.
RESOLVED_TO = {
    "optim.warmup_share": "optim.warmup_steps",
    "optim.beta2_share": "optim.beta2",
    "optim.decay_total": "optim.weight_decay",
    "method.momentum_share": "method.momentum",
}
RIVALS = RESOLVED_TO | {number: share for share, number in RESOLVED_TO.items()}
DIGITS = 6  # of a resolved number: enough, and the same on every machine


def resolve_shares(content: Mapping[str, Any], batch: int, steps: int) -> dict[str, Any]:
    """Return the settings of a run with numbers instead of shares.

    - `optim.warmup_share`: `warmup_steps` = share · steps
    - `optim.beta2_share`, `method.momentum_share`: the memory 1/(1-β) = share · steps
    - `optim.decay_total`: `weight_decay` such that the sum of lr · weight_decay over all steps is
      this total

    `batch` and `steps` are those of the training. Sections that are malformed are returned as they
    are, for their own check to refuse. Raises ValueError where a share and its number are both
    given, and where the memory would be no longer than a step.
    """
    sections = {key: _settings(value) for key, value in content.items()}
    for key, number in RESOLVED_TO.items():
        section, share = key.split(".")
        given = sections.get(section)
        if not isinstance(given, dict) or given.get(share) is None:
            continue
        if given.get(leaf := number.split(".")[1]) is not None:
            raise ValueError(f"{key} {given[share]} and {number} {given[leaf]}: give one of them")
        checked = _checked(section, given)
        if checked is None:
            continue
        del given[share]
        given[leaf] = _number(key, float(getattr(checked, share)), checked, batch, steps)
    return sections


def _settings(section: Any) -> Any:
    """Return what was given for a section as a new dict; anything else as it is."""
    if isinstance(section, Section):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return dict(section) if isinstance(section, Mapping) else section


def _checked(section: str, given: Mapping[str, Any]) -> MethodConfig | OptimConfig | None:
    """Return the section as it stands; None where it is wrong in itself."""
    try:
        return (OptimConfig if section == "optim" else MethodConfig).model_validate(given)
    except ValidationError:
        return None


def _number(
    key: str, share: float, section: MethodConfig | OptimConfig, batch: int, steps: int
) -> float:
    if key == "optim.warmup_share":
        return round(share * steps)
    if isinstance(section, OptimConfig) and key == "optim.decay_total":
        total = sum(lr_at(step, steps, section, batch) for step in range(steps))
        if not total:
            raise ValueError(f"{key} {share}: the learning rate is 0 at each of {steps} steps")
        return float(f"{share / total:.{DIGITS}g}")
    memory = share * steps
    if memory <= 1:
        raise ValueError(
            f"{key} {share} of {steps} steps is a memory of {memory:g}: should be more than one "
            f"step, so above {1 / steps:g}"
        )
    return round(1 - 1 / memory, DIGITS)
