import math
from collections.abc import Iterator
from itertools import permutations, product, tee

import numpy as np
import pytest
from scipy import stats

from stabkit.detect import event_association
from stabkit.detect.association import Association, EventTimes
from tests.detect.sequential import rarely

SPAN = (20, 519)


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
def test_the_shifts_are_every_move_of_every_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = []
    for size in (17, 23):
        causes, effects = (rng.integers(5, 5 + size, size=rng.integers(1, 5)) for _ in range(2))
        runs.append(EventTimes(causes, effects, (5, 4 + size)))
    found = event_association(runs, window=4)
    counts = [brute_force(run, 4) for run in runs]
    totals = np.array([sum(pair) for pair in product(*counts)])
    assert found.observed == totals[0]
    assert found.shift_p == pytest.approx(np.mean(totals >= totals[0]))


def random_runs(rng: np.random.Generator, schedules: list[str]) -> list[EventTimes]:
    runs = []
    for schedule in schedules:
        causes, effects = (rng.choice(60, size=rng.integers(1, 5)) + 20 for _ in range(2))
        late = rng.integers(0, 9, size=effects.size)
        runs.append(EventTimes(causes, effects, (20, 79), late, schedule))
    return runs


def count(effects: EventTimes, causes: EventTimes, window: int) -> int:
    late = effects.late if effects.late is not None else np.zeros(99)
    return sum(
        any(0 <= e - c <= window + d for c in np.asarray(causes.causes))
        for e, d in zip(np.asarray(effects.effects), np.asarray(late), strict=False)
    )


@pytest.mark.parametrize("seed", range(12))
def test_other_runs_are_all_permutations_within_a_schedule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = random_runs(rng, ["a", "a", "b", "a", "b", ""])
    found = event_association(runs, window=6)
    totals = [
        sum(count(run, runs[causes], 6) for run, causes in zip(runs, order, strict=True))
        for order in permutations(range(6))
        if all(runs[i].schedule == runs[j].schedule for i, j in enumerate(order))
    ]
    assert len(totals) == math.factorial(3) * math.factorial(2)
    assert found.observed == totals[0]
    assert found.expected == pytest.approx(np.mean(totals))
    assert found.other_runs_p == pytest.approx(np.mean(np.array(totals) >= totals[0]))


@pytest.mark.parametrize("schedule", ["", "a"])
@pytest.mark.parametrize("seed", range(12))
def test_sides_and_leads_are_those_of_a_loop(seed: int, schedule: str) -> None:
    """Without other runs of the schedule, effects near the ends of the span are left out."""
    runs = random_runs(np.random.default_rng(seed), [schedule] * 3)
    before = after = inside = near = beside = 0
    leads = []
    for run in runs:
        causes = np.asarray(run.causes).tolist()
        for e, d in zip(np.asarray(run.effects), np.asarray(run.late), strict=True):
            early = any(e - 6 - d <= c < e for c in causes)
            late = any(e < c <= e + 6 + d for c in causes)
            before, after = before + (early and not late), after + (late and not early)
            further = any(e - 2 * (6 + d) <= c < e - 6 - d for c in causes)
            whole = run.span[0] <= e - 2 * (6 + d) and e + 6 + d <= run.span[1]
            if whole or schedule:
                inside, near, beside = inside + 1, near + early, beside + late + further
            leads += [min(e - c for c in causes if c <= e)] if early or e in causes else []
    found = event_association(runs, window=6)
    assert (found.before, found.after) == (before, after)
    assert (found.inside, found.near, found.beside) == (inside, near, beside)
    p_values = [
        stats.binomtest(count, total, chance, alternative="greater").pvalue if total else 1
        for count, total, chance in ((before, before + after, 0.5), (near, near + beside, 1 / 3))
    ]
    assert found.p_value == pytest.approx(max(p_values))
    assert found.observed == len(leads)
    assert found.lead == pytest.approx(np.median(leads) if leads else math.nan, nan_ok=True)
    assert math.isnan(found.expected) == math.isnan(found.other_runs_p) == (not schedule)


@pytest.mark.parametrize("effects", [(30, 60), (45, 90)])
def test_causes_that_become_rarer_after_the_first_steps_herald_nothing(
    effects: tuple[int, int],
) -> None:
    rng, steps = np.random.default_rng(1), np.arange(20, 500)
    course = np.exp(-(steps - 20) / 30)
    wrong = 0
    for _ in range(100):
        drawn = [
            (rng.choice(steps, 5, replace=False, p=course / course.sum()),
             np.unique(rng.integers(*effects, size=3)))
            for _ in range(6)
        ]  # fmt: skip
        runs = [EventTimes(c, e, (20, 499), np.full(e.size, 5)) for c, e in drawn]
        wrong += event_association(runs, 30).p_value <= 0.05
    assert wrong <= stats.binom.ppf(0.999, 100, 0.05)


def test_more_than_seven_runs_are_sampled_and_give_one_answer() -> None:
    runs = random_runs(np.random.default_rng(0), ["a"] * 9)
    found = event_association(runs, window=6)
    rng = np.random.default_rng(1)
    totals = np.array([
        sum(count(run, runs[i], 6) for run, i in zip(runs, rng.permutation(9), strict=True))
        for _ in range(2000)
    ])  # fmt: skip
    assert found.other_runs_p == pytest.approx(np.mean(totals >= found.observed), abs=0.05)
    assert event_association(runs, window=6) == found


@pytest.mark.lengthy
@pytest.mark.parametrize("course", ["level", "early", "bad stretch"])
def test_events_of_one_time_course_are_no_association(course: str) -> None:
    """Causes and effects are drawn one by one; in two courses both are likelier at one time."""
    rng, steps = np.random.default_rng(0), np.arange(480)

    def drawn() -> Iterator[Association]:
        for _ in range(200):
            runs = []
            for _ in range(6):
                began = rng.integers(0, 380)
                rate = {
                    "level": np.ones(480),
                    "early": 8 * np.exp(-steps / 60),
                    "bad stretch": 0.1 + 5 * ((steps >= began) & (steps < began + 100)),
                }[course]
                causes, effects = (steps[rng.random(480) < r * rate] for r in (0.01, 0.006))
                runs.append(EventTimes(causes, effects, (0, 479), schedule="one"))
            yield event_association(runs, window=30)

    sides, others, shifts = tee(drawn(), 3)
    assert rarely((found.p_value <= 0.05 for found in sides), 0.05, 200)
    if course != "bad stretch":  # each run has its own, which other runs do not share
        assert rarely((found.other_runs_p <= 0.05 for found in others), 0.05, 200)
    wrong = sum(found.shift_p <= 0.05 for found in shifts)
    assert (wrong > 100) == (course != "level"), "shifts hold for constant rates alone"


@pytest.mark.lengthy
@pytest.mark.parametrize("share", [0.5, 0.67])
def test_causes_earlier_in_a_bad_stretch_of_each_run_are_no_association(share: float) -> None:
    """The effects of each run follow its causes by some fifty steps, and by no less."""
    rng = np.random.default_rng(3)

    def drawn() -> Iterator[Association]:
        for _ in range(100):
            runs = []
            for _ in range(6):
                since = np.arange(480) - rng.integers(0, 380)
                first = (since >= 0) & (since < 100 * share)
                last = (since >= 100 * (1 - share)) & (since < 100)
                causes, effects = (
                    np.flatnonzero(rng.random(480) < 0.06 * x) for x in (first, last)
                )
                runs.append(EventTimes(causes, effects, (0, 479), schedule="one"))
            yield event_association(runs, window=30)

    both, sides = tee(drawn(), 2)
    assert rarely((found.p_value <= 0.05 for found in both), 0.05, 100)
    misled = sum(stats.binom.sf(f.before - 1, f.before + f.after, 0.5) <= 0.05 for f in sides)
    assert misled >= 30, "before against after alone"


def test_a_planted_lead_is_found() -> None:
    rng = np.random.default_rng(1)
    runs = []
    for _ in range(3):
        causes = np.sort(rng.choice(450, size=4, replace=False)) + 20
        effects = causes + rng.integers(3, 10, size=4)
        runs.append(EventTimes(causes, effects, SPAN, schedule="one"))
    found = event_association(runs, window=20)
    assert found.observed == found.effects == 12
    assert found.expected < 7
    assert found.other_runs_p == pytest.approx(1 / 6), "the true order is the best of six"
    assert found.p_value < 0.01
    assert found.shift_p < 0.001
    assert 3 <= found.lead_low <= found.lead <= found.lead_high <= 9
    alone = event_association(runs[:1], window=20)
    assert alone.shift_p > 1 / 500, "moves by a step or two coincide as well"
    backwards = event_association([EventTimes(r.effects, r.causes, SPAN) for r in runs], window=2)
    assert backwards.p_value > 0.05, "a cause after the effect is none"


def test_an_effect_may_be_dated_late_by_an_evaluation() -> None:
    """At an evaluation every 25 steps, the dip begun at step 101 is seen at step 125."""
    seen = EventTimes([85], [125], (0, 499), [25])
    assert event_association([seen], window=30).observed == 1
    assert event_association([seen._replace(late=None)], window=30).observed == 0
    later = seen._replace(causes=[165])
    assert event_association([later], window=30).after == 1, "as far to either side"


def test_nothing_says_nothing() -> None:
    for causes, effects in [([], []), ([30], []), ([], [30])]:
        found = event_association([EventTimes(causes, effects, SPAN)], window=10)
        assert (found.p_value, found.observed) == (1.0, 0)
        assert (found.before, found.after, found.shift_p) == (0, 0, 1.0)
        assert math.isnan(found.other_runs_p)
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
    with pytest.raises(ValueError, match="late must be whole steps, one for each effect"):
        event_association([EventTimes([30], [40, 50], SPAN, [5])], 1)
