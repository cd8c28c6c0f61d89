"""What a branch may change: the interventions that are ready, and any setting that can change."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stabkit.config import (
    ConfigError,
    RunConfig,
    keys_of,
    parse_overrides,
    suggest,
    validate,
    with_settings,
    without_effect,
)
from stabkit.printing import counted

# What can change while a run trains. All else decides shapes, data or what the past was.
CHANGEABLE = (
    *("optim.name", "optim.lr", "optim.weight_decay", "optim.beta1", "optim.beta2", "optim.eps"),
    *("optim.momentum", "optim.trust", "optim.warmup_steps", "optim.schedule", "optim.clip"),
    *("optim.clip_at", "optim.skip_nonfinite", "method.temperature", "method.momentum"),
    *("method.momentum_schedule", "method.scale_loss", "method.sinkhorn", "method.sinkhorn_eps"),
    *("method.freeze_prototypes_steps", "views.min_scale", "views.blur_sigma"),
    *("fault.until", "fault.scale", "fault.first", "fault.lead"),
)
WITH_MOMENTS = ("adamw", "stable_adamw")  # their moments can be carried over to each other
EPS_FACTOR = 1e4
CLIP_AT = 1.0  # the running mean of the norm itself


class Intervention(NamedTuple):
    """One change. `settings` are dotted keys; `family` says which shams it is compared with."""

    name: str
    change: str
    family: str
    settings: Mapping[str, Any]


class Around(NamedTuple):
    """What the interventions must know of the run: steps around the event, and its model."""

    begin: int
    onset: int
    every: int  # steps between evaluations
    patch: Sequence[str]  # the parameters of the patch projection that train; none: it is frozen

    @property
    def over_onset(self) -> int:
        """Updates from where branches begin until two evaluations after the onset."""
        return max(1, self.onset - self.begin + 2 * self.every)

    @property
    def batches(self) -> tuple[int, int]:
        """The first batch, and how many, around the onset: one evaluation before and after it."""
        first = max(self.begin, self.onset - self.every)
        return first, self.onset + self.every - first


READY = (
    *("freeze", "reset_moments", "beta2", "clip", "half_lr_for_now", "half_lr", "warm_up_again"),
    *("skip_batches", "stable_adamw", "larger_eps"),
)


def ready(config: RunConfig, around: Around) -> tuple[list[Intervention], dict[str, str]]:
    """Return the interventions that make sense for a run, and for the others why they do not."""
    found: list[Intervention] = []
    left_out: dict[str, str] = {}
    for name in READY:
        made = _MADE[name](config, around)
        if isinstance(made, str):
            left_out[name] = made
        else:
            change, family, settings = made
            found.append(Intervention(name, change, family, settings))
    return found, left_out


Made = tuple[str, str, dict[str, Any]] | str
NO_PATCH = "the run trains no patch projection"


def _freeze(config: RunConfig, around: Around) -> Made:
    if not around.patch:
        return NO_PATCH
    return "freeze the patch projection", "freeze", {"branch.freeze": list(around.patch)}


def _clip(config: RunConfig, around: Around) -> Made:
    if not around.patch:
        return NO_PATCH
    if config.optim.clip != "none":
        return f"the run clips already (optim.clip {config.optim.clip})"
    change = "clip the gradient of the patch projection at its running norm"
    return change, "kick", {"optim.clip": "patch_embed", "optim.clip_at": CLIP_AT}


def _half_lr_for_now(config: RunConfig, around: Around) -> Made:
    steps = around.over_onset
    settings = {"branch.lr_factor": 0.5, "branch.lr_steps": steps}
    return f"half the learning rate for {steps} steps", "kick", settings


def _half_lr(config: RunConfig, around: Around) -> Made:
    return "half the learning rate for good", "kick", {"optim.lr": config.optim.lr / 2}


def _warm_up_again(config: RunConfig, around: Around) -> Made:
    steps = around.over_onset
    return f"warm up again over {steps} steps", "kick", {"branch.warmup_steps": steps}


def _skip_batches(config: RunConfig, around: Around) -> Made:
    first, count = around.batches
    change = f"skip the {counted(count, 'batch')} from step {first}"
    return change, "skip", {"branch.skip": [first, count]}


def _beta2(config: RunConfig, around: Around) -> Made:
    if config.optim.name not in WITH_MOMENTS:
        return f"{config.optim.name} is not AdamW"
    before = config.optim.beta2
    after = 0.98 if before > 0.99 else 0.9
    if before <= after:
        return f"optim.beta2 is {before} already"
    return f"beta2 from {before} to {after}", "kick", {"optim.beta2": after}


def _stable_adamw(config: RunConfig, around: Around) -> Made:
    if config.optim.name != "adamw":
        return f"{config.optim.name} is not AdamW"
    settings = {"optim.name": "stable_adamw", "compute.fused_optimizer": False}
    return "StableAdamW, the moments kept", "kick", settings


def _reset_moments(config: RunConfig, around: Around) -> Made:
    if config.optim.name not in WITH_MOMENTS:
        return f"{config.optim.name} is not AdamW"
    if around.begin == 0:
        return "there are no moments before step 0"
    return "reset the moments", "moments", {"branch.reset": ["all"]}


def _larger_eps(config: RunConfig, around: Around) -> Made:
    if config.optim.name not in (*WITH_MOMENTS, "lamb"):
        return f"{config.optim.name} has no eps"
    after = float(f"{config.optim.eps * EPS_FACTOR:.6g}")
    return f"eps from {config.optim.eps:g} to {after:g}", "kick", {"optim.eps": after}


_MADE = {
    "freeze": _freeze,
    "reset_moments": _reset_moments,
    "beta2": _beta2,
    "clip": _clip,
    "half_lr_for_now": _half_lr_for_now,
    "half_lr": _half_lr,
    "warm_up_again": _warm_up_again,
    "skip_batches": _skip_batches,
    "stable_adamw": _stable_adamw,
    "larger_eps": _larger_eps,
}


def other_skips(around: Around) -> list[int]:
    """Return the steps from which as many other batches can be skipped, before the onset's.

    If there is no room before, they are soon after: less than two evaluations after the onset.
    """
    first, count = around.batches
    before = list(range(around.begin, first - count + 1))
    return before or list(range(first + count, around.onset + 2 * around.every))


def chosen(words: Sequence[str], config: RunConfig, around: Around) -> list[Intervention]:
    """Return the interventions that `--with` names: ready ones, or settings joined by commas.

    Raises ConfigError with everything that is wrong.
    """
    there, left_out = ready(config, around)
    by_name = {one.name: one for one in there}
    found, problems = [], []
    for word in dict.fromkeys(words):
        if word in by_name:
            found.append(by_name[word])
        elif word in left_out:
            problems.append(f"{word}: {left_out[word]}")
        elif "=" not in word:
            problems.append(f"{word}: no such intervention{suggest(word, READY)}")
        else:
            try:
                found.append(_of_settings(word, config))
            except ConfigError as error:
                problems += [f"{word}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError("--with", problems)
    return found


def _of_settings(word: str, config: RunConfig) -> Intervention:
    """Return the intervention of `key=value,key=value`. Raises ConfigError."""
    pairs = re.split(r",(?=[a-z0-9_.]+=)", word)
    settings = parse_overrides(pairs)
    problems = []
    for key in settings:
        if key in CHANGEABLE:
            continue
        if key in keys_of(RunConfig):
            can = ", ".join(CHANGEABLE)
            problems.append(f"{key} cannot change while a run trains; these can: {can}")
        else:
            problems.append(f"{key}: no such setting{suggest(key, CHANGEABLE)}")
    if not problems:
        changed = validate(RunConfig, with_settings(config.model_dump(), settings), word)
        problems = without_effect(changed) + _impossible(config, changed)
    if problems:
        raise ConfigError("--with", problems)
    return Intervention(re.sub(r"[^A-Za-z0-9_.=+-]+", "_", word)[:60], word, "kick", settings)


def _impossible(before: RunConfig, after: RunConfig) -> list[str]:
    """List what a change of settings asks for that no run can do in mid-run."""
    problems = []
    one, other = before.optim, after.optim
    if one == other and before == after:
        problems.append("the run has these settings already")
    if one.name != other.name and {one.name, other.name} != set(WITH_MOMENTS):
        problems.append(
            f"optim.name from {one.name} to {other.name}: only adamw and stable_adamw can take "
            "over each other's moments"
        )
    betas = (one.beta1, one.beta2) != (other.beta1, other.beta2)
    if betas and one.name not in WITH_MOMENTS:
        problems.append(f"the betas of {one.name} cannot change while a run trains")
    return problems
