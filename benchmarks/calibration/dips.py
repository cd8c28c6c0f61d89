"""Calibrate `find_dips`: false alarms, power, F1, beside other rules at equal false alarms."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.calibration import dip_rules
from benchmarks.calibration.dip_rules import OUR_BARS, OURS, Rule, ours, ours_without_bits
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
from stabkit.detect.simulate import DIP_MIX, HEALTHY, REALISTIC, Planted, healthy
from stabkit.detect.simulate.planted import random_dips

# Scenarios of the pool on which all bars are set, and in which power is measured.
POOL = ("constant", *REALISTIC, "noise falls", "noise grows", "t3 shocks", "staircase",
        "slow cosine")  # fmt: skip
BASES = ("constant", "real_lr004", "real_lr016")
FEW_RUNS = {"1,000 evaluations": 20, "10,000 evaluations": 250, "n = 50,000": 20}  # times fewer


def dip_tables(each: Each, runs: int) -> str:
    """Return the tables of `find_dips`; `runs`: healthy runs of each realistic scenario."""
    return "\n".join([
        "### Dips: healthy runs that alarm\n", false_alarms(each, runs),
        "### Dips: all rules at equal false alarms\n", rivals(each, runs),
        "### Dips: what is found\n", power(each, runs),
    ])  # fmt: skip


def both(name: str, seed: int) -> tuple[bool, bool]:
    """Tell whether a healthy run alarms with its bits, and by its accuracy alone."""
    curve = healthy(name, seed)
    return bool(ours(curve)), bool(ours_without_bits(curve))


def false_alarms(each: Each, runs: int) -> str:
    rows, pooled = [], np.zeros((2, 3), dtype=int)
    for name in HEALTHY:
        share = 1 if name in REALISTIC else 2
        count = max(2, runs // share // FEW_RUNS.get(name, 1))
        alarms = np.array(each(partial(both, name), count, TESTING)).sum(axis=0)
        rows.append([name, str(count), *(interval(a, count) for a in alarms)])
        groups = [0, 1] if name in REALISTIC else [1]
        pooled[groups] += [count, *alarms]
    for label, (count, *alarms) in zip(("all realistic", "all"), pooled, strict=True):
        rows.append([f"**{label}**", str(count), *(interval(a, count) for a in alarms)])
    return table(["healthy scenario", "runs", *OURS], rows)


def hits(rule: Rule, k: float, base: str, planted: tuple[Planted, ...], seed: int) -> list[bool]:
    """Tell for each planted dip whether it is found; nested ones count as one."""
    spans = rule(healthy(base, seed, planted), k)
    if any(a.at <= b.at < a.at + a.width for a, b in pairwise(planted)):
        planted = planted[:1]
    return [any(a < d.at + d.width and b >= d.at for a, b in spans) for d in planted]


def power_on_mix(each: Each, rule: Rule, k: float, runs: int) -> dict[tuple[str, str], float]:
    """Return the share found of each planted form in each base."""
    return {
        (base, name): float(
            np.mean(each(partial(hits, rule, k, base, planted), runs, TESTING + 500_000))
        )
        for base in BASES
        for name, planted in DIP_MIX.items()
    }


def power(each: Each, runs: int) -> str:
    count = max(4, runs // 12)
    found = [power_on_mix(each, rule, 1.0, count) for rule in (ours, ours_without_bits)]
    rows = [
        [name, *(percent(rule[base, name], 1) for rule in found for base in BASES)]
        for name in DIP_MIX
    ]
    for label, left_out in (("**all**", ""), ("**all but one evaluation**", "one evaluation")):
        names = [name for name in DIP_MIX if not left_out or not name.startswith(left_out)]
        rows.append([label, *(percent(sum(rule[base, n] for n in names), len(names))
                              for rule in found for base in BASES)])  # fmt: skip
    head = [f"{base}, {known}" for known in ("bits", "accuracy alone") for base in BASES]
    return f"{count} runs a cell.\n\n" + table(["planted", *head], rows)


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


def rivals(each: Each, runs: int) -> str:
    """Compare all rules: as ours is, and every one at 1 % of false alarms on the tuning pool."""
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
    return table(head, rows) + note
