"""Association: do events of one kind (spikes) come before events of another kind (dips)?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, FloatArray, IntArray, median_interval

ALL_ORDERS = 7  # runs of which every permutation is tried: 5,040; more are sampled
SAMPLED = 5000


class EventTimes(NamedTuple):
    """The events of one run: onsets of causes and effects, and the first and last step of the run.

    All are in steps; both were watched over all of `span`, its ends included. `late`: the true
    onset of each effect may lie up to this many steps before the step given, for example because
    accuracy is evaluated only now and then; by default 0. Runs with the same `schedule` differ only
    by chance, such as the seeds of a cell. A run without `schedule` is compared with no other.
    """

    causes: ArrayLike
    effects: ArrayLike
    span: tuple[int, int]
    late: ArrayLike | None = None
    schedule: str = ""


@dataclass(frozen=True)
class Association:
    """The result of `event_association`, which describes the fields."""

    effects: int
    observed: int
    before: int
    after: int
    inside: int
    near: int
    beside: int
    p_value: float
    expected: float
    other_runs_p: float
    shift_p: float
    lead: float
    lead_low: float
    lead_high: float


class _Checked(NamedTuple):
    """The events of one run, counted from its first step: causes sorted, reach of each effect."""

    causes: IntArray
    effects: IntArray
    reach: IntArray
    size: int


def event_association(runs: Iterable[EventTimes], window: int) -> Association:
    """Count effects with a cause at most `window` steps before (or at their step), against chance.

    `observed` counts these effects over all runs. For each effect, `late` is added to `window`.

    What chance would do is estimated in three ways:

    - The steps around: `before` and `after` count effects that have a cause within that reach only
      before them, or only after them. Without a link, and if causes come no earlier in a run than
      effects, both are equally likely. The `inside` effects are compared with their surroundings:
      all of them if `other_runs_p` is known, else only those whose three reaches lie in the span
      (causes may be likeliest in the first steps, so that a reach cut off there would mislead). Of
      these, `near` have a cause in the reach before them. `beside` adds up those with a cause in
      the reach after them and those with one in a further reach before. If
      causes come earlier than effects in a bad stretch of a run, `before` is larger without any
      link. But as long as the chances change evenly over the three reaches, `near` is a
      third of both. `p_value` is the larger p of the two one-sided binomial tests. So it is small
      only if causes are more frequent before an effect than on both sides of that reach.
    - The causes of other runs of the same `schedule`: `expected` is the mean count if each run had
      the causes of another, over all permutations of the runs (5,000 of them for more than seven),
      and `other_runs_p` the share of permutations that give at least as many, the true one
      included. NaN without two runs of one schedule and span. It needs less data. It is valid where
      the time course follows the schedule, and not where each run has a bad stretch of its own.
    - `shift_p`: all causes of a run are moved together around its span, by every number of steps.
      It is valid only where causes are equally likely at any time, which in a training they are
      not.

    Error rates of each: docs/error-rates.md. The ratio of rates after causes and elsewhere is not
    given: its interval assumes independent events, and misses the truth wherever they cluster.

    `lead` is the median number of steps from the last cause to the effect, over the observed
    effects, with its distribution-free 95 % interval (infinite below six). It is uncertain by
    another `late` steps.

    Raises ValueError for a negative window and for events that are not whole steps in the span.
    """
    from scipy import stats  # slow to import, and only finished runs need it

    if window < 0:
        raise ValueError(f"window must be 0 steps or more, got {window}")
    given = [EventTimes(*run) for run in runs]
    checked = [_checked(run, window) for run in given]
    hits = [_hits(run, run.causes) for run in checked]
    observed = sum(int(hit.sum()) for hit in hits)
    expected, other_runs_p = _other_runs(given, checked, observed)
    sides = [np.zeros((4, 0), dtype=bool), *map(_sides, checked)]
    early, late, further, whole = np.concatenate(sides, axis=1)
    inside = whole | (not math.isnan(other_runs_p))
    before, after = int(np.sum(early & ~late)), int(np.sum(late & ~early))
    near = int(np.sum(early & inside))
    beside = int(np.sum(late & inside) + np.sum(further & inside))
    p_values = [
        stats.binom.sf(before - 1, before + after, 1 / 2),
        stats.binom.sf(near - 1, near + beside, 1 / 3),
    ]
    leads = np.concatenate(
        [np.zeros(0), *(_leads(*pair) for pair in zip(checked, hits, strict=True))]
    )
    return Association(
        sum(run.effects.size for run in checked),
        observed,
        before,
        after,
        int(np.sum(inside)),
        near,
        beside,
        float(max(p_values)),
        expected,
        other_runs_p,
        _at_least(observed, [_shifted(run) for run in checked]),
        float(np.median(leads)) if leads.size else math.nan,
        *median_interval(leads),
    )


def _checked(run: EventTimes, window: int) -> _Checked:
    first, last = run.span
    if last < first:
        raise ValueError(f"span must be (first step, last step), got {run.span}")
    causes = np.sort(_steps("causes", run.causes, run.span)) - first
    effects = _steps("effects", run.effects, run.span) - first
    late = np.zeros(effects.size) if run.late is None else np.asarray(run.late, dtype=float)
    if late.shape != effects.shape or not np.all((late >= 0) & (late == np.floor(late))):
        raise ValueError(f"late must be whole steps, one for each effect, got {run.late}")
    return _Checked(causes, effects, window + late.astype(np.int64), last - first + 1)


def _steps(name: str, values: ArrayLike, span: tuple[int, int]) -> IntArray:
    given = np.asarray(values, dtype=float)
    wrong = given[~((given == np.floor(given)) & (given >= span[0]) & (given <= span[1]))]
    if wrong.size:
        raise ValueError(f"{name} must be whole steps in {span[0]}..{span[1]}, got {wrong[0]:g}")
    return given.astype(np.int64)


def _any_within(causes: IntArray, first: IntArray, last: IntArray) -> BoolArray:
    """Return for each pair of steps whether a cause lies between, both included."""
    return np.searchsorted(causes, last, side="right") > np.searchsorted(causes, first)


def _hits(run: _Checked, causes: IntArray) -> BoolArray:
    """Return for each effect whether one of these causes comes within its reach before it."""
    return _any_within(causes, run.effects - run.reach, run.effects)


def _sides(run: _Checked) -> BoolArray:
    """Return for each effect [4, effects] where causes are, in reaches of the same length.

    Whether there is one near before it, after it, and further before it, and whether all three
    reaches lie in the span. A cause at the step of the effect is on no side.

    Near the ends of the span the first two sides are not cut to the same length. Where both rates
    fall from the first step on, an early effect has more causes before than after it, and a late
    one fewer. This evens out over the whole span, but only if no side is cut. The three reaches do
    not even out: the one further before is cut at the first steps, where causes are likeliest.
    """
    at, reach = run.effects, run.reach
    sides: BoolArray = np.stack([
        _any_within(run.causes, at - reach, at - 1),
        _any_within(run.causes, at + 1, at + reach),
        _any_within(run.causes, at - 2 * reach, at - reach - 1),
        (at >= 2 * reach) & (at + reach < run.size),
    ])  # fmt: skip
    return sides


def _leads(run: _Checked, hits: BoolArray) -> FloatArray:
    latest = np.searchsorted(run.causes, run.effects[hits], side="right") - 1
    return (run.effects[hits] - run.causes[latest]).astype(float)


def _other_runs(
    given: Sequence[EventTimes], checked: Sequence[_Checked], observed: int
) -> tuple[float, float]:
    """Return the mean count with the causes of other runs, and the p of the count observed.

    A run without another of its schedule and span keeps its own causes.
    """
    alike: dict[tuple[str, tuple[int, int]], list[_Checked]] = {}
    for run, times in zip(given, checked, strict=True):
        if run.schedule:
            alike.setdefault((run.schedule, run.span), []).append(times)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return math.nan, math.nan
    inside = sum(int(_hits(run, run.causes).sum()) for group in groups for run in group)
    nulls = [_permuted(group) for group in groups]
    mean = sum(float(null @ np.arange(null.size)) for null in nulls)
    return observed - inside + mean, _at_least(inside, nulls)


def _permuted(runs: Sequence[_Checked]) -> FloatArray:
    """Return the distribution of the coincidences over permutations of the runs' causes."""
    counts = np.array([[int(_hits(run, other.causes).sum()) for other in runs] for run in runs])
    size = len(runs)
    if size <= ALL_ORDERS:
        orders = np.array(list(permutations(range(size))))
    else:
        rng = np.random.default_rng(0)  # the same answer every time; the true order is one of them
        drawn = rng.permuted(np.tile(np.arange(size), (SAMPLED - 1, 1)), axis=1)
        orders = np.concatenate([np.arange(size)[None], drawn])
    return _law(counts[np.arange(size), orders].sum(axis=1))


def _shifted(run: _Checked) -> FloatArray:
    """Return the distribution of the coincidences over all circular shifts of the causes."""
    begun = np.bincount(run.causes, minlength=run.size) > 0
    hits = np.zeros(run.size, dtype=np.int64)  # one number for each shift
    # Running count over two rounds: no window of the shifted causes wraps around its end.
    twice = np.concatenate([[0], np.cumsum(np.concatenate([begun, begun]))])
    moves = np.arange(run.size)
    for effect, most in zip(run.effects.tolist(), run.reach.tolist(), strict=True):
        # A cause shifted by s lies in [effect - reach, effect] if it began s steps earlier, modulo
        # size. No window reaches back beyond the first step.
        reach = min(most, effect)
        start = (effect - reach - moves) % run.size
        hits += twice[start + reach + 1] > twice[start]
    return _law(hits)


def _law(counts: IntArray) -> FloatArray:
    """Return the probability of each count from 0 on, where all of `counts` are equally likely."""
    shares: FloatArray = np.bincount(counts) / counts.size
    return shares


def _at_least(observed: int, laws: Iterable[FloatArray]) -> float:
    """Return the probability that independent counts with these laws add up to `observed`."""
    together = np.ones(1)
    for law in laws:
        together = np.convolve(together, law)
    return min(1.0, float(together[observed:].sum()))
