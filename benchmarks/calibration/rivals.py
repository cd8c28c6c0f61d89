"""Compare rules for dips at equal false alarms: power on a mix of planted dips, and F1."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.calibration import dip_rules
from benchmarks.calibration.dip_rules import OUR_BARS, OURS, Rule
from benchmarks.calibration.dips import BASES, power_on_mix
from benchmarks.calibration.scores import (
    SILENT,
    TESTING,
    TUNING,
    Each,
    Spans,
    f1,
    interval,
    matched,
    percent,
    table,
)
from stabkit.detect.simulate import REALISTIC, Planted, healthy
from stabkit.detect.simulate.planted import random_dips

# Scenarios of the pool on which all bars are set.
POOL = ("constant", *REALISTIC, "noise falls", "noise grows", "t3 shocks", "staircase",
        "slow cosine")  # fmt: skip


def alarms_at(rule: Rule, bars: Sequence[float], name: str, seed: int) -> list[bool]:
    """Tell for each bar whether a healthy run alarms."""
    curve = healthy(name, seed)
    return [bool(rule(curve, k)) for k in bars]


def quiet_bar(each: Each, rule: Rule, bars: Sequence[float], runs: int) -> float | None:
    """Return the lowest bar with at most 1 % false alarms on the pool of tuning seeds."""
    alarms: Any = sum(
        np.sum(each(partial(alarms_at, rule, bars, name), runs, TUNING), axis=0) for name in POOL
    )
    quiet = np.flatnonzero(alarms <= SILENT * runs * len(POOL))
    return bars[int(quiet[0])] if quiet.size else None


def dips_of(planted: tuple[Planted, ...]) -> Spans:
    return [(dip.at, dip.at + dip.width - 1) for dip in planted]


def scored(rule: Rule, k: float, base: str, seed: int) -> tuple[int, int, int]:
    """Score a search in a run with up to three dips of 2 to 12 points and 2 to 15 evaluations."""
    planted = random_dips(np.random.default_rng(seed))
    return matched(dips_of(planted), rule(healthy(base, seed, planted), k))


def rival_tables(each: Each, runs: int) -> str:
    """Return the table of all rules: ours as it is, and every one at 1 % of false alarms."""
    tuned, count = max(4, runs // 12), max(4, runs // 12)
    entries: list[tuple[str, Rule, Sequence[float]]] = [
        (f"{name}, as it is", rule, (1.0,)) for name, rule in OURS.items()
    ]
    entries += [(name, rule, OUR_BARS) for name, rule in OURS.items()]
    entries += [(name, rule, bars) for name, (rule, bars) in dip_rules.others().items()]
    rows = []
    for name, rule, bars in entries:
        bar = bars[0] if len(bars) == 1 else quiet_bar(each, rule, bars, tuned)
        if bar is None:
            rows.append([name, f"above {bars[-1]:g}", *["-"] * (2 + len(BASES))])
            continue
        alarms = sum(np.sum(each(partial(alarms_at, rule, [bar], n), count, TESTING)) for n in POOL)
        found = np.mean(list(power_on_mix(each, rule, bar, max(2, count // 2)).values()))
        scores = [f1(each(partial(scored, rule, bar, base), 2 * count, TESTING)) for base in BASES]
        rows.append([name, f"{bar:g}", interval(alarms, count * len(POOL)), percent(found, 1),
                     *(f"{score:.3f}" for score in scores)])  # fmt: skip
    head = ["rule", "bar", "healthy runs that alarm", "power on the mix",
            *(f"F1, {base}" for base in BASES)]  # fmt: skip
    note = "" if dip_rules.has_pelt() else f"\n{dip_rules.NO_PELT}\n"
    return "### Dips: all rules at equal false alarms\n\n" + table(head, rows) + note
