"""Calibrate `find_dips`: false alarms in healthy runs, and power on a mix of planted dips."""

from functools import partial
from itertools import pairwise

import numpy as np

from benchmarks.calibration.dip_rules import OURS, Rule, ours, ours_without_bits
from benchmarks.calibration.scores import (
    TESTING,
    Each,
    interval,
    percent,
    table,
)
from stabkit.detect.simulate import DIP_MIX, HEALTHY, REALISTIC, Planted, healthy

BASES = ("constant", "real_lr004", "real_lr016")
FEW_RUNS = {"1,000 evaluations": 5, "10,000 evaluations": 25, "n = 50,000": 5}  # times fewer


def dip_tables(each: Each, runs: int) -> str:
    """Return the tables of `find_dips`; `runs`: healthy runs of each realistic scenario."""
    return "\n".join([
        "### Dips: healthy runs that alarm\n", false_alarms(each, runs),
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
