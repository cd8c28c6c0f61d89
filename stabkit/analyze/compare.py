"""Compare the levels of two arms of runs: how far apart they end, and how sure that is."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stabkit.analyze.counts import ALPHA
from stabkit.analyze.intervals import ENOUGH, TESTED, Interval, paired_test, unpaired_test
from stabkit.analyze.matching import Matched
from stabkit.printing import counted


@dataclass(frozen=True)
class Comparison:
    """How the second arm differs from the first.

    effect: mean of the second arm minus that of the first, in the unit of the values.
    n: the number of pairs, or of the values in each arm.
    interval: 95 %; NaN if there are too few values (`intervals.ENOUGH`).
    p_value: two-sided, of equal means; NaN for fewer than `intervals.TESTED` or without spread.
    """

    paired: bool
    n: tuple[int, ...]
    effect: float
    interval: Interval
    p_value: float


def compare_pairs(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare values that are paired by their position. Pairs with a NaN are left out."""
    found = paired_test(np.asarray(second, dtype=float) - np.asarray(first, dtype=float))
    return Comparison(True, found.n, found.mean, found.interval, found.p_value)


def compare_apart(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare values of two arms that are not paired. NaN are left out."""
    found = unpaired_test(first, second)
    return Comparison(False, found.n, found.mean, found.interval, found.p_value)


def compare_matched(found: Matched, column: str = "level") -> Comparison:
    """Compare a column of runs as they were matched."""
    if not found.keys:
        return compare_apart(found.first[column], found.second[column])
    pairs = found.pairs(column)
    return compare_pairs(pairs["first"], pairs["second"])


def in_words(found: Comparison, first: str, second: str, unit: str = "points") -> str:
    """Describe a comparison: what was seen, and how sure it is."""
    low, high = found.interval
    if np.isnan(found.effect):
        return f"{second} against {first}: no levels to compare."
    lead = f"{second} ends {abs(found.effect):.1f} {unit} {_side(found.effect)} {first}"
    lead += " on average" if max(found.n) > 1 else ""
    number = _number(found)
    if math.isnan(found.p_value):
        few = min(found.n) < TESTED
        why = f"fewer than {TESTED}" if few else "values without any spread"
        return f"{lead} ({number}): {why} cannot tell whether that is more than chance."
    sure = found.p_value <= ALPHA
    verdict = f"{second} is {_word(found.effect)}" if sure else "no difference is shown"
    said = f"95 % interval {low:+.1f} to {high:+.1f}, "
    if math.isnan(low):
        said = ""
        unit = "pairs" if found.paired else "runs of each"
        verdict += f". There are too few runs for an interval, which takes {ENOUGH} {unit}"
    return f"{lead} ({said}p = {found.p_value:.2g}, {number}): {verdict}."


def _number(found: Comparison) -> str:
    if found.paired:
        return counted(found.n[0], "pair")
    return f"unpaired: {found.n[0]} and {counted(found.n[1], 'run')}"


def _side(effect: float) -> str:
    return "above" if effect >= 0 else "below"


def _word(effect: float) -> str:
    return "higher" if effect >= 0 else "lower"
