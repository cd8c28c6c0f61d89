"""Wald's sequential test of a rate: it stops as soon as the outcome is clear."""

import math
from collections.abc import Iterable
from functools import cache

from scipy import optimize, stats

FALSE_ALARM = 0.001  # probability that a detector which keeps the stated rate fails the test
MISSED = 0.05  # probability that one with the alternative rate passes


def rarely(happens: Iterable[bool], rate: float, trials: int) -> bool:
    """Return whether the events of at most `trials` trials happen no more often than `rate`.

    A count of all trials would fail above the 99.9 % quantile of the binomial at `rate`. Wald's
    ratio test (Ann. Math. Stat. 16, 1945) decides between `rate` and the rate that such a count
    would catch with 95 %, with the same two error probabilities, from a part of the trials. If it
    has not decided after all of them, the count decides.
    """
    most = largest_count(rate, trials)
    other = alternative(rate, trials)
    hit, miss = math.log(other / rate), math.log((1 - other) / (1 - rate))
    fail, hold = math.log((1 - MISSED) / FALSE_ALARM), math.log(MISSED / (1 - FALSE_ALARM))
    ratio = hits = 0.0
    for happened in happens:
        hits += happened
        ratio += hit if happened else miss
        if ratio >= fail or ratio <= hold:
            return ratio <= hold
    return hits <= most


@cache
def largest_count(rate: float, trials: int) -> int:
    """Return the 99.9 % quantile of the events in all trials."""
    return int(stats.binom.ppf(1 - FALSE_ALARM, trials, rate))


@cache
def alternative(rate: float, trials: int) -> float:
    """Return the rate that a count of all trials would catch with 95 %."""

    def missing(p: float) -> float:
        return float(stats.binom.cdf(largest_count(rate, trials), trials, p)) - MISSED

    return float(optimize.brentq(missing, rate, 1 - 1e-9))
