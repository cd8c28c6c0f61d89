import math
from collections.abc import Iterator
from itertools import product, tee

import numpy as np
import pytest
from scipy import stats

from stabkit.detect import event_association
from stabkit.detect.association import EventTimes
from tests.detect.sequential import rarely

SPAN = (20, 519)


def simulate(rng: np.random.Generator, window: int, rate: float, ratio: float) -> EventTimes:
    """Causes at random; effects with `rate` a step, `ratio` times that up to `window` after one."""
    steps = np.arange(SPAN[0], SPAN[1] + 1)
    cause = rng.random(steps.size) < 0.01
    near = np.convolve(cause, np.ones(window + 1))[: steps.size] > 0
    effect = rng.random(steps.size) < np.where(near, rate * ratio, rate)
    return EventTimes(steps[cause], steps[effect], SPAN)


def brute_force(run: EventTimes, window: int) -> list[int]:
    """Coincidences for every move of the causes, the real place first."""
    first, last = run.span
    size = last - first + 1
    counts = []
    for move in range(size):
        moved = [(int(c) - first + move) % size + first for c in np.asarray(run.causes)]
        hits = [any(0 <= e - c <= window for c in moved) for e in np.asarray(run.effects)]
        counts.append(sum(hits))
    return counts


@pytest.mark.parametrize("seed", range(8))
def test_the_null_is_every_move_of_every_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = []
    for size in (17, 23):
        causes, effects = (rng.integers(5, 5 + size, size=rng.integers(1, 5)) for _ in range(2))
        runs.append(EventTimes(causes, effects, (5, 4 + size)))
    found = event_association(runs, window=4)
    counts = [brute_force(run, 4) for run in runs]
    totals = np.array([sum(pair) for pair in product(*counts)])
    assert found.observed == totals[0]
    assert found.expected == pytest.approx(totals.mean())
    assert found.p_value == pytest.approx(np.mean(totals >= totals[0]))


@pytest.mark.parametrize("seed", range(4))
def test_steps_at_risk_and_leads_are_those_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    causes, effects = rng.choice(200, size=6, replace=False), np.array([40, 90, 150])
    found = event_association([EventTimes(causes, effects, (0, 199), effects + 20)], window=12)
    risk = [t for t in range(200) if not any(e < t <= e + 20 for e in effects)]
    near = {t for t in risk if any(0 <= t - c <= 12 for c in causes)}
    hits = sorted(set(effects.tolist()) & near)
    leads = [min(t - c for c in causes if c <= t) for t in hits]
    assert found.observed == len(hits)
    if hits:
        assert found.lead == np.median(leads)
    # one run: the conditional interval is Clopper and Pearson's of the share of effects near
    share = stats.binomtest(len(hits), 3).proportion_ci(0.95)
    scale = (len(risk) - len(near)) / len(near)
    with np.errstate(divide="ignore"):
        low, high = (np.float64(s) / (1 - s) * scale for s in (share.low, share.high))
    assert (found.hazard_low, found.hazard_high) == pytest.approx((low, high))


def test_independent_events_alarm_no_more_often_than_the_level() -> None:
    """Causes in clusters and runs of different rates, which a pooled test takes for association."""
    rng = np.random.default_rng(0)
    seen: list[float] = []

    def p_values() -> Iterator[float]:
        for _ in range(400):
            runs = []
            for rate in (0.002, 0.02):
                starts = rng.choice(500, size=max(1, int(1000 * rate)))
                causes = np.unique((starts[:, None] + [0, 2, 5]).ravel() % 500) + 20
                effects = np.flatnonzero(rng.random(500) < rate) + 20
                runs.append(EventTimes(causes, effects, SPAN))
            seen.append(event_association(runs, window=15).p_value)
            yield seen[-1]

    levels = (0.01, 0.05, 0.2, 0.5)
    for level, same in zip(levels, tee(p_values(), len(levels)), strict=True):
        assert rarely((p <= level for p in same), level, 400), level
    assert np.mean(seen) < 0.75, "so conservative a test would find nothing"


def test_a_planted_lead_is_found() -> None:
    rng = np.random.default_rng(1)
    runs = []
    for _ in range(3):
        causes = np.sort(rng.choice(450, size=4, replace=False)) + 20
        runs.append(EventTimes(causes, causes + rng.integers(3, 10, size=4), SPAN))
    found = event_association(runs, window=20)
    assert found.observed == found.effects == 12
    assert found.expected < 6
    assert found.p_value < 0.001
    assert 3 <= found.lead_low <= found.lead <= found.lead_high <= 9
    assert found.hazard_low > 1
    assert found.hazard_ratio == math.inf
    alone = event_association(runs[:1], window=20)
    assert alone.p_value > 1 / 500, "moves by a step or two coincide as well"
    backwards = event_association([EventTimes(r.effects, r.causes, SPAN) for r in runs], window=2)
    assert backwards.p_value > 0.05, "a cause after the effect is none"


@pytest.mark.parametrize("ratio", [1.0, 5.0])
def test_the_hazard_interval_covers_the_truth(ratio: float) -> None:
    rng = np.random.default_rng(2)

    def misses() -> Iterator[bool]:
        for _ in range(300):
            runs = [simulate(rng, 10, rate, ratio) for rate in (0.002, 0.01)]
            found = event_association(runs, window=10)
            yield not found.hazard_low <= ratio <= found.hazard_high

    assert rarely(misses(), 0.05, 300)


def test_a_bad_run_with_more_of_both_proves_nothing() -> None:
    """Causes and effects at random in each run; three runs have few of both, one has many."""
    rng = np.random.default_rng(3)
    trials, pooled_alarms, alarms = 60, 0, 0
    for _ in range(trials):
        runs = []
        for rate in (0.001, 0.001, 0.001, 0.03):
            causes, effects = (np.flatnonzero(rng.random(1000) < rate) for _ in range(2))
            runs.append(EventTimes(causes, effects, (0, 999)))
        alarms += event_association(runs, window=9).hazard_low > 1
        causes, effects = (
            np.concatenate([np.add(run[kind], 1000 * i) for i, run in enumerate(runs)])
            for kind in (0, 1)
        )
        pooled = event_association([EventTimes(causes, effects, (0, 3999))], window=9)
        pooled_alarms += pooled.hazard_low > 1
    assert pooled_alarms > trials / 2, "the case is one that fools a pooled ratio"
    assert stats.binom.sf(alarms - 1, trials, 0.025) > 0.001


def test_nothing_says_nothing() -> None:
    for causes, effects in [([], []), ([30], []), ([], [30])]:
        found = event_association([EventTimes(causes, effects, SPAN)], window=10)
        assert (found.p_value, found.observed) == (1.0, 0)
        assert math.isnan(found.hazard_ratio)
        assert (found.hazard_low, found.hazard_high) == (0.0, math.inf)
        assert math.isnan(found.lead)
    assert event_association([], window=10).p_value == 1.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"causes must be whole steps in 20\.\.519, got 5"):
        event_association([EventTimes([5], [30], SPAN)], 10)
    with pytest.raises(ValueError, match=r"effects must be whole steps in 20\.\.519, got nan"):
        event_association([EventTimes([30], [math.nan], SPAN)], 10)
    with pytest.raises(ValueError, match="window must be 0 steps or more, got -1"):
        event_association([], -1)
    with pytest.raises(ValueError, match=r"span must be \(first step, last step\)"):
        event_association([EventTimes([], [], (9, 0))], 1)
