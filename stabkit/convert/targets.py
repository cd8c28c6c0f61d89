"""`--map COLUMN=TARGET`: what the user says about a name, which comes before any rule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stabkit.convert.series import ConvertError, suggest_name

Kind = Literal["step", "skip", "scalar", "eval", "layer", "parameter", "rule"]
FORMS = (
    "step, skip, NAME, scalar:NAME, eval:NAME, percent:NAME, error:NAME, "
    "score:NAME:WORST:BEST, layer:NAME or layer:NAME:DEPTH"
)
_KINDS: dict[str, Kind] = {
    "scalar": "scalar", "eval": "eval", "percent": "eval", "error": "eval", "score": "eval",
    "layer": "layer",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where a series goes. `facts` are those known of an evaluation: chance, n, k, temperature.

    Kind `rule`: the new name is judged as if it stood in the log. Kind `parameter`: a norm that is
    joined with others of its layer. Kind `layer`: the norm of a whole layer.
    """

    kind: Kind
    name: str = ""
    depth: int | None = None
    signal: str = "grad_norm"
    facts: Mapping[str, Any] = field(default_factory=dict)
    percent: bool = False  # in percent, however small the values
    error: bool = False  # the share of wrong answers
    ends: tuple[float, float] | None = None  # the worst and the best value of a score


def parse_map(pairs: Sequence[str]) -> dict[str, Target]:
    """Parse pairs such as `val/acc1=knn_heldout`; a column may contain `=`. Raises ConvertError."""
    targets: dict[str, Target] = {}
    for pair in pairs:
        name, sep, text = pair.rpartition("=")
        if not (name and sep and text):
            raise ConvertError(f"--map {pair!r}: not of the form COLUMN=TARGET; TARGET is {FORMS}")
        if name in targets:
            raise ConvertError(f"--map {pair!r}: {name!r} is mapped twice")
        targets[name] = _target(pair, text)
    columns = [name for name, target in targets.items() if target.kind == "step"]
    if len(columns) > 1:
        raise ConvertError(f"--map: several columns of steps, {', '.join(columns)}")
    return targets


def _target(pair: str, text: str) -> Target:
    if text == "step":
        return Target("step")
    if text == "skip":
        return Target("skip")
    kind, sep, name = text.partition(":")
    if not sep or kind not in _KINDS:
        if sep and (single := kind.removesuffix("s")) in _KINDS:  # evals, scalars, layers
            raise ConvertError(f"--map {pair!r}: write {single}:{name}; TARGET is {FORMS}")
        return Target("rule", text)
    if kind == "score":
        return _score(pair, name)
    depth = None
    if kind == "layer" and ":" in name:
        name, _, number = name.rpartition(":")
        if not (number.isdecimal() and len(number) < 6):
            raise ConvertError(f"--map {pair!r}: the depth {number!r} is not a number from 0 on")
        depth = int(number)
    if not name:
        raise ConvertError(f"--map {pair!r}: no name; TARGET is {FORMS}")
    return Target(_KINDS[kind], name, depth, percent=kind == "percent", error=kind == "error")


def _score(pair: str, text: str) -> Target:
    """Parse NAME:WORST:BEST. The name may contain colons."""
    name, *ends = text.rsplit(":", 2)
    try:
        worst, best = map(float, ends)
    except ValueError:
        worst = best = math.nan
    if not (name and math.isfinite(worst) and math.isfinite(best) and worst != best):
        raise ConvertError(
            f"--map {pair!r}: a score needs its name and two numbers, the worst value and the "
            "best, as score:reward:-21:21 or, where less is better, score:fid:300:0"
        )
    return Target("eval", name, ends=(worst, best))


def step_of(targets: Mapping[str, Target]) -> str | None:
    return next((name for name, target in targets.items() if target.kind == "step"), None)


def refuse_unknown(names: Iterable[str], known: Sequence[str], source: str) -> None:
    for name in names:
        if name not in known:
            raise ConvertError(f"--map {name!r}: not in {source}{suggest_name(name, known)}")
