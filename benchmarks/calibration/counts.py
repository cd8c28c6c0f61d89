"""Measure how comparisons of runs err: coverage of intervals, errors of tests, stable frontiers.

The runs are drawn, not trained. A law says how the level of a run, or its number of dips, scatters
from seed to seed. In `collapse` a run loses 20 points with a chance of .3, beside a noise of 1.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.calibration.scores import Each, interval, made
from stabkit.analyze.compare import compare_apart, compare_pairs
from stabkit.analyze.counts import Counts, rates_test
from stabkit.analyze.intervals import FloatArray
from stabkit.analyze.sensitivity import stable_frontier

FIRST_SEED = 1_000_000
LOSS, CHANCE = 20.0, 0.3  # points that a collapse costs, and how many runs collapse
STEPS = 500
Draw = Callable[[np.random.Generator, int], FloatArray]


def normal(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.normal(size=n)


def heavy(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.standard_t(3, size=n)


def skewed(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.lognormal(size=n)


def collapse(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.normal(size=n) - LOSS * (rng.random(n) < CHANCE)


# name, first arm, second arm, true difference of means (second less first)
ARMS: list[tuple[str, Draw, Draw, float]] = [
    ("normal", normal, normal, 0.0),
    ("t of 3 degrees", heavy, heavy, 0.0),
    ("log-normal (sigma 1) against none", lambda rng, n: np.zeros(n), skewed, math.exp(0.5)),
    ("one arm collapses in 30 % of runs", collapse, normal, CHANCE * LOSS),
    ("both arms collapse in 30 %", collapse, collapse, 0.0),
]


def lower(rng: np.random.Generator, n: int) -> FloatArray:
    return normal(rng, n) - CHANCE * LOSS


# In the last row the arms have one mean, but not one law. A few runs cannot know: if none of them
# collapses, the other arm looks lower for sure.
ALIKE: list[tuple[str, Draw, Draw]] = [
    ("both normal", normal, normal),
    ("both t of 3 degrees", heavy, heavy),
    ("both log-normal (sigma 1)", skewed, skewed),
    ("both collapse in 30 % of runs", collapse, collapse),
    ("one collapses in 30 %, the other is always lower, means equal", collapse, lower),
]


def coverage_table(sets: int, sizes: tuple[int, ...] = (3, 5, 10)) -> str:
    """Return how often the interval of a difference holds the true mean, pairs and apart."""
    rows = []
    for name, first, second, truth in ARMS:
        cells = [name]
        for n in sizes:
            for compare in (compare_pairs, compare_apart):
                inside = told = 0
                for i in range(sets):
                    rng = np.random.default_rng([FIRST_SEED + i, n])
                    low, high = compare(first(rng, n), second(rng, n)).interval
                    told += not math.isnan(low)
                    inside += low <= truth <= high
                cells.append(interval(inside, told) if told else "too few")
        rows.append(cells)
    head = ["differences", *(f"n = {n}, {how}" for n in sizes for how in ("pairs", "apart"))]
    return _table(head, rows)


def student_table(sets: int, sizes: tuple[int, ...] = (3, 5, 10)) -> str:
    """Return the same of Student's interval (Welch's if apart), which is not used, to compare."""
    rows = []
    for name, first, second, truth in ARMS:
        cells = [name]
        for n in sizes:
            drawn = [np.random.default_rng([FIRST_SEED + i, n]) for i in range(sets)]
            arms = [(first(rng, n), second(rng, n)) for rng in drawn]
            one, two = (np.array(arm) for arm in zip(*arms, strict=True))
            for test in (
                stats.ttest_1samp(two - one, 0, axis=1),
                stats.ttest_ind(two, one, axis=1, equal_var=False),
            ):
                low, high = test.confidence_interval(0.95)
                cells.append(interval(int(((low <= truth) & (truth <= high)).sum()), sets))
        rows.append(cells)
    head = ["differences", *(f"n = {n}, {how}" for n in sizes for how in ("pairs", "apart"))]
    return _table(head, rows)


def level_error_table(sets: int, sizes: tuple[int, ...] = (3, 5, 10)) -> str:
    """Return how often arms of one mean are said to differ at .05."""
    rows = []
    for name, first, second in ALIKE:
        cells = [name]
        for n in sizes:
            for compare in (compare_pairs, compare_apart):
                wrong = 0
                for i in range(sets):
                    rng = np.random.default_rng([FIRST_SEED + i, n, 1])
                    wrong += compare(first(rng, n), second(rng, n)).p_value <= 0.05
                cells.append(interval(wrong, sets))
        rows.append(cells)
    head = ["arms", *(f"n = {n}, {how}" for n in sizes for how in ("pairs", "apart"))]
    return _table(head, rows)


def gamma_poisson(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.poisson(rng.gamma(1.0, 2.0, n)).astype(float)


def bad_runs(rng: np.random.Generator, n: int) -> FloatArray:
    return 4.0 * (rng.random(n) < CHANCE)


COUNTED: list[tuple[str, Draw]] = [
    ("Poisson, mean 2", lambda rng, n: rng.poisson(2, n).astype(float)),
    ("at most one a run", lambda rng, n: (rng.random(n) < 0.5).astype(float)),
    ("clustered in runs (gamma-Poisson, shape 1, mean 2)", gamma_poisson),
    ("30 % of runs bad, with 4 dips each", bad_runs),
]


def rate_error_table(sets: int, sizes: tuple[int, ...] = (3, 5, 10)) -> str:
    """Return how often equal rates of dips are said to differ at .05, by two tests.

    Each dip takes a tenth of a run, which is left out of its exposure. `dips exchanged` is the
    exact Poisson test, which takes dips as independent; it is here for comparison alone.
    """
    rows = []
    for name, law in COUNTED:
        cells = [name]
        for n in sizes:
            wrong = poisson = 0
            for i in range(sets):
                rng = np.random.default_rng([FIRST_SEED + i, n, 2])
                one, two = law(rng, n), law(rng, n)
                test = rates_test(
                    *(Counts(c, STEPS * np.maximum(0, 1 - c / 10)) for c in (one, two))
                )
                wrong += test.p_value <= 0.05
                total = int(one.sum() + two.sum())
                poisson += bool(total) and stats.binomtest(int(one.sum()), total).pvalue <= 0.05
            cells += [interval(wrong, sets), interval(poisson, sets)]
        rows.append(cells)
    head = ["both arms", *(f"{n} runs, {w} exchanged" for n in sizes for w in ("runs", "dips"))]
    return _table(head, rows)


def rate_power_table(sets: int, sizes: tuple[int, ...] = (3, 4, 6, 10)) -> str:
    """Return how often an arm that dips more is told from one of which a tenth of runs dip once."""
    rows = []
    for name, law in COUNTED:
        cells = [name]
        for n in sizes:
            found = 0
            for i in range(sets):
                rng = np.random.default_rng([FIRST_SEED + i, n, 3])
                calm = (rng.random(n) < 0.1).astype(float)
                found += rates_test(Counts(calm), Counts(law(rng, n))).p_value <= 0.05
            cells.append(interval(found, sets))
        rows.append(cells)
    return _table(["the arm that dips more", *(f"{n} runs an arm" for n in sizes)], rows)


def frontier_table(sets: int, alarms: tuple[float, ...] = (0.01, 0.04)) -> str:
    """Return how often a sweep of stable runs over four rates shows an unstable rate."""
    rows = []
    for alarm in alarms:
        for seeds in (1, 3, 5, 10):
            wrong = once = whole = 0
            for i in range(sets):
                rng = np.random.default_rng([FIRST_SEED + i, seeds, 4])
                fell = rng.random((4, seeds)) < alarm
                frame = pd.DataFrame(
                    {"optim.lr": np.repeat([1.0, 2.0, 3.0, 4.0], seeds)}
                    | {"verdict": np.where(fell.ravel(), "unstable", "stable")}
                )
                (row,) = stable_frontier(frame, by=[]).to_dict("records")
                wrong += bool(row["below"] or not math.isnan(row["unstable"]))
                whole += row["stable"] == 4
                once += bool(fell.any())
            rows.append([f"{alarm:.0%}", str(seeds), interval(wrong, sets), interval(once, sets),
                         interval(whole, sets)])  # fmt: skip
    head = ["false alarms a run", "seeds", "sweeps with an unstable rate"]
    return _table([*head, "if one alarm sufficed", "stable up to the largest rate"], rows)


def count_tables(each: Each, runs: int) -> str:
    """Return every table of this module; `runs` * 2 / 5 data sets a cell, or a multiple."""
    sets = max(2, 2 * runs // 5)
    tables = [
        ("Intervals of a difference of levels: coverage, nominal 95 %", coverage_table, 2 * sets),
        ("The same of Student's interval, which is not used", student_table, 2 * sets),
        ("Levels: arms of one mean that are said to differ at .05", level_error_table, sets),
        ("Dips: arms of one law that are said to differ at .05", rate_error_table, sets),
        ("Dips: power at .05", rate_power_table, sets),
        ("Sweeps of four rates, of which all are stable", frontier_table, 3 * sets // 2),
    ]
    return made(each, [
        (f"{title} ({number} sets a cell)", partial(make, number))
        for title, make, number in tables
    ])  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
