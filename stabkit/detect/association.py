"""Association: do events of one kind (spikes) come before events of another kind (dips)?"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, FloatArray, IntArray, median_interval

TAIL = 0.025  # probability on either side of a 95 % interval


class EventTimes(NamedTuple):
    """The events of one run: onsets of causes and effects, and the first and last step of the run.

    All are in steps; both ends of `span` were watched. `ends` is the last step of each effect,
    before which no other effect can begin; by default it is the onset.
    """

    causes: ArrayLike
    effects: ArrayLike
    span: tuple[int, int]
    ends: ArrayLike | None = None


@dataclass(frozen=True)
class Association:
    """The result of `association`, which describes the fields."""

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
    """The counts of one run.

    `null` is the distribution of coincidences by chance; `exposed` and `unexposed` are the steps at
    risk inside and outside of the windows after causes.
    """

    null: FloatArray
    hits: int
    effects: int
    exposed: int
    unexposed: int
    leads: list[int]


def event_association(runs: Iterable[EventTimes], window: int) -> Association:
    """Count effects with a cause at most `window` steps before (or at their step), against chance.

    `observed` counts these effects over all runs. Chance is a circular shift: all causes of a run
    are moved together around its span, by every number of steps. `expected` is the mean count over
    all shifts, and the one-sided `p_value` is the share of shifts that give at least as many. The
    shifts of several runs are combined by convolving their distributions. The test is exact where
    the causes of a run are as likely at any time, and it keeps both the rates of the runs and the
    clustering of causes. A shift by a few steps often coincides as well, so one run of n steps
    alone cannot give a p far below window / n; several runs can. The test cannot tell an
    association from a third thing that makes both likelier at one time, such as the learning rate.

    `hazard_ratio` is the rate of effects per step within `window` after a cause, over the rate
    elsewhere. Both are rates within a run (steps inside an effect are in neither), so a bad run
    with more of both proves nothing. It is the conditional maximum likelihood with its exact 95 %
    interval. It is NaN, with the interval 0 to infinity, where no run with an effect has steps of
    both kinds.

    `lead` is the median number of steps from the last cause to the effect, over the observed
    effects, with its distribution-free 95 % interval (infinite below six).

    Raises ValueError for a negative window and for events that are not whole steps in the span.
    """
    if window < 0:
        raise ValueError(f"window must be 0 steps or more, got {window}")
    counts = [_count(EventTimes(*run), window) for run in runs]
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


def _count(run: EventTimes, window: int) -> _Counts:
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
        at_risk[effects] = True  # an effect may begin inside another; its own step was at risk
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
    """Return the steps with something begun at the step itself or within `window` steps before."""
    # begun at t - window .. t: the count up to t is above the count up to t - window - 1
    so_far = np.concatenate([np.zeros(min(window + 1, begun.size)), np.cumsum(begun)])
    return np.cumsum(begun) > so_far[: begun.size]


def _null(begun: BoolArray, effects: IntArray, window: int) -> FloatArray:
    """Return the distribution of the coincidences over all circular shifts of the causes."""
    hits = np.zeros(begun.size, dtype=np.int64)  # of every shift
    # Running count over two rounds: no window of the shifted causes wraps around its end.
    twice = np.concatenate([[0], np.cumsum(np.concatenate([begun, begun]))])
    moves = np.arange(begun.size)
    for effect in effects:
        # A cause shifted by s lies in [effect - reach, effect] if it began s steps earlier, modulo
        # size. No window reaches back beyond the first step.
        reach = min(window, int(effect))
        start = (effect - reach - moves) % begun.size
        hits += twice[start + reach + 1] > twice[start]
    return np.bincount(hits, minlength=effects.size + 1) / begun.size


def _hazard_ratio(runs: list[_Counts]) -> tuple[float, float, float]:
    """Return the hazard ratio and its exact 95 % interval (as Clopper and Pearson's for one run).

    Given the number of effects in a run, those within windows are binomial with odds
    ratio x exposed / unexposed: the rate of the run itself cancels. The law of the sum over runs is
    the convolution of their binomials.
    """
    from scipy import optimize, stats  # slow to import, and only finished runs need it

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
        # The solution is sought in the logarithm; e^40 is beyond any ratio of steps.
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
