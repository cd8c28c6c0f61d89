"""Choose the table for every series of a log: as the user says, else as its name says."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stabkit.convert.layers import NAME, LayerSeries, group_norms
from stabkit.convert.layout import of_layout, order_of
from stabkit.convert.naming import layer_signal
from stabkit.convert.scores import is_score, proposed_target
from stabkit.convert.series import ConvertError, Log, Series, shown, tidy
from stabkit.convert.targets import Target
from stabkit.printing import counted
from stabkit.store.accuracies import (
    has_held_out_twin,
    is_accuracy,
    is_held_out,
    is_knn,
    is_training,
    scale_of,
)
from stabkit.store.schema import METRIC

EVAL_NAME = rf"(): {NAME}"  # characters in the name of an evaluation
LOW = 0.2  # an accuracy that never gets there may be in percent, of a run that learned nothing
_MOSTLY_PERCENT = re.compile(r"acc@?\d|top-?@?\d", re.IGNORECASE)
_ERROR = re.compile(r"(?<![a-zA-Z])err(or)?s?(_?rate)?(?![a-zA-Z])|(?<=[a-z])Err(or)?s?(?![a-z])")
OWN = ("knn_heldout", "knn_bank", "knn_full", "linear", "finetune")


@dataclass(frozen=True)
class LoggedAccuracy:
    """An accuracy in 0..1. Unknown `chance` and `temperature` are NaN, unknown `n` and `k` 0."""

    series: Series
    chance: float = float("nan")
    n: int = 0
    k: int = 0
    temperature: float = float("nan")
    score: bool = False  # put on 0..1 by its worst and best value, so no share of samples


@dataclass
class ConversionPlan:
    """The plan of a run: its tables, `went` (source, where, remark) and what was left out.

    `silent`: as in `Log`.
    """

    scalars: dict[str, Series] = field(default_factory=dict)
    evals: dict[str, list[LoggedAccuracy]] = field(default_factory=dict)
    layers: LayerSeries = field(default_factory=LayerSeries)
    went: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    silent: tuple[int, int, int] | None = None
    options: list[str] = field(default_factory=list)
    """What to add to the command if something was guessed wrongly."""


def place(
    log: Log, targets: Mapping[str, Target], chance: float | None, n: int | None
) -> ConversionPlan:
    """Put every series of `log` in its table, or among what was left out.

    `chance` and `n`, if given, hold for every evaluation. Raises ConvertError when a series cannot
    be what the user maps it to.
    """
    plan = ConversionPlan(left_out=dict(log.left_out), notes=list(log.notes), silent=log.silent)
    series = {name: one.settled() for name, one in log.series.items()}
    if twice := sum(log.series[name].replaced(one) for name, one in series.items()):
        plan.notes.append(f"{counted(twice, 'value')} written twice at a step: the later was kept")
        if 2 * twice > sum(one.steps.size for one in log.series.values()):
            plan.notes.append(
                "most rows share their step with a later one: count rows by --row-step"
            )
            plan.options.append("--row-step")
    series = {name: one for name, one in series.items() if one.steps.size}
    known = {**of_layout(log.layout, series), **targets}
    held_out = {"train_loss", "valid_loss", "time"} <= {*log.series, *log.left_out}  # fastai
    judged = {name: _judge(name, known.get(name), series, held_out) for name in series}
    _name_the_knn(judged, series)
    asked = {"n": n, "chance": chance}
    given = {fact: value for fact, value in asked.items() if value is not None}
    of_layers: dict[str, tuple[Target, Series]] = {}
    for name, target in judged.items():
        if target.kind == "skip":
            plan.left_out[name] = "as asked"
        elif target.kind in ("layer", "parameter"):
            if _is_norm(plan, name, name in targets, series[name]):
                of_layers[name] = target, series[name]
            else:
                _add_scalar(plan, name, name, series[name])
        elif target.kind == "eval":
            if target.ends is not None and given:
                raise ConvertError(
                    f"--{next(iter(given))}: not with the score {shown(name)}, which "
                    "is no share of samples that were right"
                )
            target = replace(target, facts={**target.facts, **given})
            _add_eval(plan, name, target, series[name], name in targets)
        else:
            _add_scalar(plan, name, target.name, series[name])
            if name not in targets and _may_be_error_rate(name, series[name]):
                told = f"{shown(name)}=error:{_ERROR.sub('acc', name)}"
                plan.notes.append(f"{shown(name)}, if it is the share of errors: --map {told}")
                plan.options.append(f"--map={told}")
    plan.layers = group_norms(of_layers, order_of(log.layout))
    plan.went += plan.layers.went
    for name in plan.layers.refused:
        _add_scalar(plan, name, name, series[name], "its layer has this signal from elsewhere")
    if given and not plan.evals:
        told = " and ".join(f"--{fact}" for fact in given)
        plan.notes.append(f"{told} not used: the log has no accuracy of an evaluation")
    return plan


def propose_score(
    logs: Sequence[Log], plans: Sequence[ConversionPlan], targets: Mapping[str, Target]
) -> None:
    """Note in each plan without an evaluation how the first score of the logs can be judged."""
    names = dict.fromkeys(name for log in logs for name in log.series if name not in targets)
    for name in filter(is_score, names):
        of_runs = [log.series[name] for log in logs if name in log.series]
        if target := proposed_target(name, of_runs):
            break
    else:
        return
    pair = f"{name}={target}"
    for plan in plans:
        if not plan.evals and any(source == name for source, _, _ in plan.went):
            plan.notes.append(
                f"{shown(name)} looks like a score. To have its falls judged: "
                f"--map {shown(shlex.quote(pair), 200)}. The numbers are its worst and its best "
                "value here: give the same two for all runs that you compare"
            )
            plan.options.append(f"--map={pair}")


def _judge(name: str, asked: Target | None, series: Mapping[str, Series], held_out: bool) -> Target:
    """Return where a series goes; `held_out`: every accuracy of this log is, as fastai's are."""
    if asked is not None and asked.kind != "rule":
        return asked
    new = asked.name if asked is not None else name
    if layer_signal(new):
        return Target("parameter", new)
    accuracy = is_accuracy(new) and not is_training(new)
    accuracy = accuracy and (held_out or _now_and_then(name, new, series))
    return Target("eval" if new in OWN or accuracy else "scalar", new)


def _now_and_then(name: str, new: str, series: Mapping[str, Series]) -> bool:
    """Return whether it is named as held out or logged rarely; else it is of training batches.

    `accuracy` beside `val_accuracy` is of training, however rarely it is logged.
    """
    if is_held_out(new):
        return True
    others = [other for other in series if other != name]
    if has_held_out_twin(new, others):
        return False
    longest = max((series[other].steps.size for other in others), default=0)
    return not others or 2 * series[name].steps.size <= longest


def _may_be_error_rate(name: str, series: Series) -> bool:
    """Return whether it may be the share of wrong answers; the mean of an error may look so too."""
    return bool(_ERROR.search(name)) and is_held_out(name) and scale_of(series.values) is not None


def _name_the_knn(judged: dict[str, Target], series: Mapping[str, Series]) -> None:
    """Make the only kNN accuracy `knn_heldout`; if there are several, the user has to choose."""
    evals = {name: t.name for name, t in judged.items() if t.kind == "eval"}
    knn = [name for name, new in evals.items() if is_knn(new) and new not in OWN]
    knn = [name for name in knn if scale_of(series[name].values) is not None]
    if len(knn) == 1 and METRIC not in evals.values():
        judged[knn[0]] = Target("eval", METRIC)


def _add_eval(
    plan: ConversionPlan,
    source: str,
    target: Target,
    series: Series,
    asked: bool,
) -> None:
    infinite = int(np.isinf(series.values).sum())
    if target.ends is not None:
        series = _on_scale(source, series, *target.ends)
    scale = scale_of(series.values)
    if scale is None:
        wrong = series.values[~((series.values >= 0) & (series.values <= 100))]
        wrong = wrong[~np.isnan(wrong)]
        why = f"holds {wrong[0]:g}: no accuracy, which is in 0..1 or in percent"
        if asked:
            raise ConvertError(f"{shown(source)} {why}")
        _add_scalar(plan, source, target.name, series, why)
        plan.notes.append(f"{shown(source)} {why}: kept as a scalar")
        return
    scale = 100.0 if target.percent else scale
    if scale == 100 and (step := _unit_changes(series)) is not None:
        plan.notes.append(
            f"{shown(source)} jumps about a hundredfold at step {step:,}: fractions before, and "
            "percent from there on? All was divided by 100"
        )
    metric = tidy(target.name, EVAL_NAME)
    shares = np.minimum(series.values / scale, 1.0)
    right = 1 - shares if target.error else shares
    evaluation = LoggedAccuracy(
        Series(series.steps, right), **target.facts, score=target.ends is not None
    )
    others = plan.evals.setdefault(metric, [])
    if any(other.k == evaluation.k for other in others):
        plan.left_out[source] = f"duplicate: {metric} came from another series"
        return
    others.append(evaluation)
    values = evaluation.series.values
    finite = values[~np.isnan(values)]
    if target.ends is not None:
        remark = "a score, {:.12g} is 0 and {:.12g} is 1; ".format(*target.ends)
        remark += f"{counted(infinite, 'infinite value')} left out; " if infinite else ""
    else:
        remark = "percent, divided by 100; " if scale == 100 else "taken as fractions; "
    remark += "1 minus the share of errors; " if target.error else ""
    remark += f"{finite.min(initial=1):.3f} to {finite.max(initial=0):.3f}"
    plan.went.append((source, f"evals: {metric}", remark))
    if (
        target.ends is None
        and scale == 1
        and _MOSTLY_PERCENT.search(source)
        and finite.max(initial=0) < LOW
    ):
        plan.notes.append(
            f"{shown(source)} is never above {finite.max(initial=0):g}: taken as fractions. In "
            f"percent, as many loops write it, it would be a hundredth of that: --map "
            f"{shown(source)}=percent:{metric}"
        )
        plan.options.append(f"--map={source}=percent:{metric}")


def _on_scale(source: str, series: Series, worst: float, best: float) -> Series:
    """Return a score with `worst` at 0 and `best` at 1; values that are not finite are NaN.

    Raises ConvertError if a value lies beyond them.
    """
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    shares = (values - worst) / (best - worst) + 0.0  # no -0.0
    beyond = np.flatnonzero((shares < 0) | (shares > 1))
    if beyond.size:
        low, high = np.nanmin(values), np.nanmax(values)
        raise ConvertError(
            f"{shown(source)} holds {values[beyond[0]]:.12g}, which is not between {worst:.12g} "
            f"and {best:.12g}: its values lie from {low:.12g} to {high:.12g}"
        )
    return Series(series.steps, shares)


def _unit_changes(series: Series) -> int | None:
    """Return the step from which an accuracy seems to be in percent, after three fractions."""
    known = ~np.isnan(series.values)
    steps, values = series.steps[known], series.values[known]
    first = int((values > 1).argmax())
    jumps = first >= 3 and 50 <= values[first] / max(values[first - 1], 1e-9) <= 200
    return int(steps[first]) if jumps else None


def _add_scalar(
    plan: ConversionPlan, source: str, name: str, series: Series, remark: str = ""
) -> None:
    name = tidy(name)
    if name in plan.scalars:
        plan.left_out[source] = f"duplicate: {shown(name)} came from another series"
        return
    plan.scalars[name] = series
    plan.went.append((source, f"scalars: {shown(name)}", remark))


def _is_norm(plan: ConversionPlan, name: str, asked: bool, series: Series) -> bool:
    negative = series.values[series.values < 0]
    if not negative.size:
        return True
    if asked:
        raise ConvertError(f"{shown(name)} holds {negative[0]:g}: no norm, which is never below 0")
    plan.notes.append(f"{shown(name)} is no norm, it holds {negative[0]:g}: kept as a scalar")
    return False
