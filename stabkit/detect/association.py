"""Association: do events of one kind, as spikes, come before those of another, as dips?"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, FloatArray, IntArray, median_interval

TAIL = 0.025  # on either side of a 95 % interval


class Watched(NamedTuple):
    """One run: onsets of causes and effects in steps, and the steps watched for both, inclusive.

    `ends`: the last step of each effect, before which no other one can begin; by default its onset.
    """

    causes: ArrayLike
    effects: ArrayLike
    span: tuple[int, int]
    ends: ArrayLike | None = None


@dataclass(frozen=True)
class Association:
    """What `association` found; see there."""

    effects: int
    observed: int
    expected: float
    p_value: float
    hazard_ratio: float
    hazard_low: float
    hazard_high: float
    lead: float
    lead_low: float
    lead_high: float


class _Counts(NamedTuple):
    """Of one run: null of the coincidences, effects and steps at risk in and out of the windows."""

    null: FloatArray
    hits: int
    effects: int
    exposed: int
    unexposed: int
    leads: list[int]


def association(runs: Iterable[Watched], window: int) -> Association:
    """Effects with a cause at their step or at most `window` steps before, against chance.

    `observed` counts them over all runs. `expected` and the one-sided `p_value` come from moving
    all causes of a run together around its span, each run by itself: the mean, and the share of at
    least as many. All moves of all runs are counted (the runs' distributions are convolved), so the
    test is exact where the causes of a run are as likely at any time, and keeps both the runs'
    rates and the clustering of causes. Moves of a few steps often coincide as well, so that one run
    of n steps alone gives no p far below window / n; several do. A third thing that makes both
    likelier at one time, such as the learning rate, is not told from an association.

    `hazard_ratio`: effects a step within `window` after a cause over effects a step elsewhere,
    within runs (steps inside an effect are in neither), so that a bad run with more of both proves
    nothing; conditional maximum likelihood with its exact 95 % interval. NaN, 0 to infinity,
    where no run with an effect has steps of both kinds.

    `lead`: median steps from the last cause to the effect, of those observed, with distribution-
    free 95 % interval (infinite below six).

    Raises ValueError for a negative window and for events that are no whole numbers in the span.
    """
    if window < 0:
        raise ValueError(f"window must be 0 steps or more, got {window}")
    counts = [_count(Watched(*run), window) for run in runs]
    null = np.ones(1)
    for run in counts:
        null = np.convolve(null, run.null)
    observed = sum(run.hits for run in counts)
    leads = np.array([lead for run in counts for lead in run.leads], dtype=float)
    return Association(
        sum(run.effects for run in counts),
        observed,
        float(null @ np.arange(null.size)),
        min(1.0, float(null[observed:].sum())),
        *_hazard_ratio([run for run in counts if run.effects and run.exposed and run.unexposed]),
        float(np.median(leads)) if leads.size else math.nan,
        *median_interval(leads),
    )


def _count(run: Watched, window: int) -> _Counts:
    first, last = run.span
    if last < first:
        raise ValueError(f"span must be (first step, last step), got {run.span}")
    size = last - first + 1
    causes = np.sort(_steps("causes", run.causes, run.span)) - first
    effects = _steps("effects", run.effects, run.span) - first
    begun = np.bincount(causes, minlength=size) > 0
    covered = _recent(begun, window)
    at_risk = np.ones(size, dtype=bool)
    if run.ends is not None:
        ends = _steps("ends", run.ends, run.span) - first
        for onset, end in zip(effects, ends, strict=True):
            at_risk[onset + 1 : end + 1] = False
        at_risk[effects] = True
    before = np.searchsorted(causes, effects, side="right") - 1
    leads = [int(e - causes[i]) for e, i in zip(effects, before, strict=True) if covered[e]]
    return _Counts(
        _null(begun, effects, window),
        int(np.sum(covered[effects])),
        effects.size,
        int(np.sum(at_risk & covered)),
        int(np.sum(at_risk & ~covered)),
        leads,
    )


def _steps(name: str, values: ArrayLike, span: tuple[int, int]) -> IntArray:
    given = np.asarray(values, dtype=float)
    wrong = given[~((given == np.floor(given)) & (given >= span[0]) & (given <= span[1]))]
    if wrong.size:
        raise ValueError(f"{name} must be whole steps in {span[0]}..{span[1]}, got {wrong[0]:g}")
    return given.astype(np.int64)


def _recent(begun: BoolArray, window: int) -> BoolArray:
    """Steps at which something has begun within `window` steps before, or at the step itself."""
    so_far = np.concatenate([np.zeros(min(window + 1, begun.size)), np.cumsum(begun)])
    return np.cumsum(begun) > so_far[: begun.size]


def _null(begun: BoolArray, effects: IntArray, window: int) -> FloatArray:
    """Distribution of the coincidences when the causes are moved by every number of steps."""
    hits = np.zeros(begun.size, dtype=np.int64)
    twice = np.concatenate([[0], np.cumsum(np.concatenate([begun, begun]))])
    moves = np.arange(begun.size)
    for effect in effects:
        # causes moved by s lie in [effect - reach, effect] when they were s earlier, modulo size
        reach = min(window, int(effect))
        start = (effect - reach - moves) % begun.size
        hits += twice[start + reach + 1] > twice[start]
    return np.bincount(hits, minlength=effects.size + 1) / begun.size


def _hazard_ratio(runs: list[_Counts]) -> tuple[float, float, float]:
    """Of all effects in a run, those exposed are binomial with odds ratio x exposed / unexposed."""
    from scipy import optimize, stats  # slow to import, and only a finished run is asked

    total, hits = sum(run.effects for run in runs), sum(run.hits for run in runs)
    if not total:
        return math.nan, 0.0, math.inf

    def exposed(log_ratio: float) -> FloatArray:
        law = np.ones(1)
        for run in runs:
            odds = math.exp(log_ratio) * run.exposed / run.unexposed
            share = odds / (1 + odds)
            law = np.convolve(law, stats.binom.pmf(np.arange(run.effects + 1), run.effects, share))
        return law

    def solve(rising: Callable[[float], float]) -> float:
        return math.exp(float(optimize.brentq(rising, -40, 40)))

    ratio, low, high = 0.0, 0.0, math.inf
    if hits == total:
        ratio = math.inf
    elif hits:
        ratio = solve(lambda x: float(exposed(x) @ np.arange(total + 1)) - hits)
    if hits:
        low = solve(lambda x: float(exposed(x)[hits:].sum()) - TAIL)
    if hits < total:
        high = solve(lambda x: TAIL - float(exposed(x)[: hits + 1].sum()))
    return ratio, low, high
