"""Calibrate `event_association`: how often it errs, and what it finds, under several time courses.

Six runs of 480 steps, all of one schedule. Causes and effects are drawn step by step; where nothing
is planted, nothing links them but the time course.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from benchmarks.calibration.scores import interval
from stabkit.detect import event_association
from stabkit.detect.association import EventTimes
from stabkit.detect.robust import FloatArray, IntArray

RUNS, STEPS, WINDOW = 6, 480, 30
JITTER, DRAWS = 45, 399  # steps within which a cause is drawn anew; how often
CAUSES, EFFECTS = 5.0, 3.0  # of a run, about
T = np.arange(STEPS)
LEVEL = np.full(STEPS, 1 / STEPS)
Draw = Callable[[np.random.Generator], tuple[IntArray, IntArray]]  # causes and effects of a run


def drawn(rng: np.random.Generator, count: float, course: FloatArray) -> IntArray:
    """Draw steps, about `count` of them, with chances in proportion to `course`."""
    return np.flatnonzero(rng.random(STEPS) < count * course / course.sum())


def clustered(rng: np.random.Generator, count: float, others: tuple[int, ...]) -> IntArray:
    """Draw clusters: a step and `others` after it, about `count` in all."""
    first = drawn(rng, count / (1 + len(others)), LEVEL)
    steps = np.unique(first[:, None] + np.array([0, *others]))
    return steps[steps < STEPS]


def early(fold: float) -> FloatArray:
    course: FloatArray = np.exp(-T / fold)
    return course


def bad_stretch(rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    began = rng.integers(0, STEPS - 100)
    course = np.where((began <= T) & (began + 100 > T), 1.0, 0.02)
    return drawn(rng, CAUSES, course), drawn(rng, EFFECTS, course)


def earlier_in_stretch(share: float, every: int) -> Draw:
    """Causes are in the first `share` of a bad stretch of each run, effects in the last."""

    def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        since = T - rng.integers(0, STEPS - 100)
        first = np.where((since >= 0) & (since < 100 * share), 1.0, 0.01)
        last = np.where((since >= 100 * (1 - share)) & (since < 100), 1.0, 0.01)
        return drawn(rng, CAUSES, first), seen(drawn(rng, EFFECTS, last), every)

    return draw


def seen(effects: IntArray, every: int) -> IntArray:
    """Return the evaluations that first show the effects."""
    shown = np.unique(-(-effects // every) * every)
    return shown[shown < STEPS]


def heralded(course: FloatArray, nearest: int, farthest: int, every: int) -> Draw:
    """Half of the effects come after a cause; effects are dated at the next evaluation."""

    def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        causes = drawn(rng, CAUSES, course)
        after = causes[rng.random(causes.size) < EFFECTS / 2 / CAUSES]
        after = after + rng.integers(nearest, farthest + 1, size=after.size)
        effects = np.concatenate([drawn(rng, EFFECTS / 2, course), after])
        return causes, seen(effects, every)

    return draw


UNLINKED: dict[str, tuple[Draw, int]] = {  # with the steps between evaluations
    "equal chances": (lambda rng: (drawn(rng, CAUSES, LEVEL), drawn(rng, EFFECTS, LEVEL)), 1),
    "causes in clusters": (lambda rng: (
        clustered(rng, CAUSES, (3, 7)), drawn(rng, EFFECTS, LEVEL)
    ), 1),
    "both in clusters": (lambda rng: (
        clustered(rng, CAUSES, (3, 7)), clustered(rng, EFFECTS, (20,))
    ), 1),
    "both likelier early": (lambda rng: (
        drawn(rng, CAUSES, early(60)), drawn(rng, EFFECTS, early(60))
    ), 1),
    "both in one bad stretch": (bad_stretch, 1),
    "causes early, effects late": (lambda rng: (
        drawn(rng, CAUSES, early(60)), drawn(rng, EFFECTS, early(60)[::-1])
    ), 1),
    "both early, causes earlier": (lambda rng: (
        drawn(rng, CAUSES, early(40)), drawn(rng, EFFECTS, np.exp(-(((T - 60) / 50) ** 2)))
    ), 1),
    "bad stretch, causes in its first half, effects in its second":
        (earlier_in_stretch(0.5, 5), 5),
    "the same, evaluated every 25": (earlier_in_stretch(0.5, 25), 25),
    "bad stretch, causes in its first two thirds, effects in its last":
        (earlier_in_stretch(0.67, 5), 5),
    "those, evaluated every 25": (earlier_in_stretch(0.67, 25), 25),
}  # fmt: skip
LINKED: dict[str, tuple[Draw, int]] = {
    "5 to 25 steps before": (heralded(LEVEL, 5, 25, 1), 1),
    "5 to 25 steps before, early": (heralded(early(60), 5, 25, 1), 1),
    "10 to 25 steps before, evaluated every 5": (heralded(LEVEL, 10, 25, 5), 5),
    "10 to 25 steps before, evaluated every 25": (heralded(LEVEL, 10, 25, 25), 25),
    "the same, not told that dips are dated late": (heralded(LEVEL, 10, 25, 25), 1),
}


def runs_of(draw: Draw, seed: int, every: int = 1) -> list[EventTimes]:
    """Return the runs of one data set; effects are dated up to `every` - 1 steps late."""
    rng = np.random.default_rng(seed)
    events = [draw(rng) for _ in range(RUNS)]
    return [
        EventTimes(causes, effects, (0, STEPS - 1), np.full(effects.size, every - 1), "one")
        for causes, effects in events
    ]


def jitter_p(runs: list[EventTimes], seed: int) -> float:
    """Return the p of interval jitter (Amarasingham et al. 2012): causes are drawn anew nearby.

    Each cause may move within its interval of `JITTER` steps. So only timing that is finer counts.
    """
    rng, observed, drawn_anew = np.random.default_rng(seed), 0, np.zeros(DRAWS, dtype=int)
    for run in runs:
        causes, effects = np.asarray(run.causes), np.asarray(run.effects)
        reach = WINDOW + np.asarray(run.late)
        begin = causes // JITTER * JITTER
        size = np.minimum(begin + JITTER, STEPS) - begin
        moved = begin + np.floor(rng.random((DRAWS, causes.size)) * size).astype(int)
        observed += int(_hits(causes[None], effects, reach)[0])
        drawn_anew += _hits(moved, effects, reach)
    return float((1 + np.sum(drawn_anew >= observed)) / (1 + DRAWS))


def _hits(causes: IntArray, effects: IntArray, reach: IntArray) -> IntArray:
    """Return how many effects have a cause within reach before them, in each row of causes."""
    lag = effects[None, :, None] - causes[:, None, :]
    hits: IntArray = ((lag >= 0) & (lag <= reach[None, :, None])).any(axis=2).sum(axis=1)
    return hits


def association_table(sets: int, seed: int) -> str:
    """Return how often each p is at most .05, where nothing links causes and effects, or half."""
    rows = []
    for title, group in (("no link", UNLINKED), ("half heralded", LINKED)):
        for name, (draw, every) in group.items():
            data = [runs_of(draw, seed + i, every) for i in range(sets)]
            found = [event_association(runs, WINDOW) for runs in data]
            effects = np.mean([one.effects for one in found])
            p_values = np.array([
                [stats.binom.sf(f.before - 1, f.before + f.after, 0.5),
                 f.p_value, f.other_runs_p, max(f.p_value, f.other_runs_p), f.shift_p,
                 jitter_p(runs, seed + i)]
                for i, (runs, f) in enumerate(zip(data, found, strict=True))
            ])  # fmt: skip
            hits = (p_values <= 0.05).sum(axis=0).tolist()
            rows.append([title, name, f"{effects:.0f}", *(interval(hit, sets) for hit in hits)])
    head = ["truth", "causes and effects", "effects", "before against after alone",
            "the steps around", "other runs' causes", "the last two", "circular shift",
            f"interval jitter, {JITTER} steps"]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
