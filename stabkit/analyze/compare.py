"""Compare two arms of runs: how far apart they end, and what so few runs could show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stabkit.analyze.intervals import (
    UNKNOWN,
    Interval,
    bootstrap_interval,
    detectable_effect,
    student_test,
)
from stabkit.analyze.text import counted

FEWEST = 6  # pairs; with 5, sign and signed-rank tests reach at best p = 2 / 2**5 = .06


@dataclass(frozen=True)
class Comparison:
    """How the second arm differs from the first.

    effect: mean of the second arm minus that of the first, in the unit of the values.
    n: the number of pairs, or of the values in each arm.
    student: 95 % interval (Welch's if unpaired); the verdict follows from it.
    bootstrap: NaN if n is too small.
    detectable: the true effect that a two-sided t test at 5 % would have found in 80 % of such
    comparisons, given the spread seen here.
    p_value: of that t test.
    p_rank, p_sign: Wilcoxon's signed-rank test (Mann-Whitney's if unpaired) and the sign test; NaN
    if n is so small that they cannot reach 5 %.
    """

    paired: bool
    n: tuple[int, ...]
    effect: float
    student: Interval
    bootstrap: Interval
    detectable: float
    p_value: float
    p_rank: float
    p_sign: float


def compare_pairs(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare values that are paired by their position. Pairs with a NaN are left out."""
    both = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    d = both[~np.isnan(both)]
    found = student_test(d)
    p_rank = p_sign = math.nan
    differ = d[d != 0]  # both tests ignore pairs without a difference
    if differ.size >= FEWEST:
        p_rank = float(stats.wilcoxon(differ).pvalue)
        p_sign = float(stats.binomtest(int((differ > 0).sum()), differ.size).pvalue)
    return Comparison(
        paired=True,
        n=(d.size,),
        effect=found.mean,
        student=found.interval,
        bootstrap=bootstrap_interval(d),
        detectable=detectable_effect(_sd(d), d.size),
        p_value=found.p_value,
        p_rank=p_rank,
        p_sign=p_sign,
    )


def compare_apart(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare values of two arms that cannot be paired. NaN are left out."""
    one, two = (x[~np.isnan(x)] for x in (np.asarray(v, dtype=float) for v in (first, second)))
    student, p_value, p_rank = UNKNOWN, math.nan, math.nan
    spread = _pooled_sd(one, two)
    if min(one.size, two.size) > 1 and spread > 0:
        test = stats.ttest_ind(two, one, equal_var=False)
        interval = test.confidence_interval(0.95)
        student, p_value = (float(interval.low), float(interval.high)), float(test.pvalue)
    if min(one.size, two.size) >= 4:  # with two arms of three, p is at best .1
        p_rank = float(stats.mannwhitneyu(two, one).pvalue)
    return Comparison(
        paired=False,
        n=(one.size, two.size),
        effect=float(two.mean() - one.mean()) if one.size and two.size else math.nan,
        student=student,
        bootstrap=UNKNOWN,
        detectable=detectable_effect(spread, one.size, two.size),
        p_value=p_value,
        p_rank=p_rank,
        p_sign=math.nan,
    )


def _sd(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def _pooled_sd(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    freedom = one.size + two.size - 2
    if not (one.size and two.size and freedom):
        return math.nan
    return math.sqrt((one.var() * one.size + two.var() * two.size) / freedom)


def pair_rows(
    first: pd.DataFrame, second: pd.DataFrame, shared: Sequence[str], column: str = "level"
) -> pd.DataFrame:
    """Return the rows of two arms that agree in `shared`: columns `shared`, first, second.

    Rows of one arm that agree in all of `shared` are one pair, and their mean counts. Rows without
    a seed have no partner.
    """
    keys = list(shared)
    if not keys:
        return pd.DataFrame(columns=["first", "second"])
    one, two = (
        rows.dropna(subset=[key for key in keys if key == "seed"])
        .groupby(keys, sort=False, dropna=False)[column]
        .mean()
        for rows in (first, second)
    )
    joined = pd.concat({"first": one, "second": two}, axis=1, join="inner")
    return joined.dropna().reset_index()


def in_words(found: Comparison, first: str, second: str, unit: str = "points") -> str:
    """Describe a comparison: what was seen, how sure it is, and what n runs could have shown."""
    low, high = found.student
    if np.isnan(found.effect):
        return f"{second} against {first}: no levels to compare."
    lead = f"{second} ends {abs(found.effect):.1f} {unit} {_side(found.effect)} {first} on average"
    number = _number(found)
    if math.isnan(low):
        why = "so few" if min(found.n) < 2 else "values without any spread"
        return f"{lead} ({number}): {why} cannot tell whether that is more than chance."
    verdict = "no difference is shown" if low <= 0 <= high else f"{second} is {_word(found.effect)}"
    lines = [f"{lead} (95 % interval {low:+.1f} to {high:+.1f}, {number}): {verdict}."]
    if not math.isnan(found.bootstrap[0]):
        lines.append("Bootstrap interval {:+.1f} to {:+.1f}.".format(*found.bootstrap))
    ranks = [("rank test", found.p_rank), ("sign test", found.p_sign)]
    told = [f"{name} p = {p:.2g}" for name, p in ranks if not math.isnan(p)]
    few = f"Rank and sign tests need {FEWEST} pairs." if found.paired else ""
    lines.append(f"{', '.join(told).capitalize()}." if told else few)
    lines.append(
        f"So many runs, as noisy as these, would show a true difference of {found.detectable:.1f} "
        f"{unit} four times in five; a smaller one often not."
    )
    return " ".join(line for line in lines if line)


def _number(found: Comparison) -> str:
    if found.paired:
        return counted(found.n[0], "pair")
    return f"unpaired: {found.n[0]} and {found.n[1]} runs"


def _side(effect: float) -> str:
    return "above" if effect >= 0 else "below"


def _word(effect: float) -> str:
    return "higher" if effect >= 0 else "lower"
