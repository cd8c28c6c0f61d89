"""Measure possible dips: how many healthy runs have one, and how many planted dips are one."""

from functools import partial

import numpy as np

from benchmarks.calibration.dips import BASES
from benchmarks.calibration.scores import TESTING, Each, interval, percent, table
from stabkit.detect.dips import search_dips
from stabkit.detect.simulate import DIP_MIX, REALISTIC, Planted, healthy

SCENARIOS = (*REALISTIC, "restless", "noise falls", "t3 shocks", "constant")


def possible_tables(each: Each, runs: int) -> str:
    """Return the tables; `runs`: healthy runs of each scenario."""
    return "\n".join([
        "### Possible dips: healthy runs that have one\n", in_healthy_runs(each, runs),
        "### Possible dips: what they add\n", what_they_add(each, max(4, runs // 12)),
    ])  # fmt: skip


def first_of(name: str, planted: tuple[Planted, ...], seed: int) -> tuple[bool, bool]:
    """Tell whether a run has a dip, and whether it has a dip or a possible one.

    Where dips were planted, only those that overlap the first of them count.
    """
    curve = healthy(name, seed, planted)
    found = search_dips(curve.step, curve.accuracy, correct=curve.correct)
    if planted:
        first, last = curve.step[planted[0].at], curve.step[planted[0].at + planted[0].width - 1]
        ends = found["recovery"].fillna(np.inf)
        found = found[(found["onset"] < last) & (ends > first)]
    return bool((~found["possible"]).any()), bool(len(found))


def in_healthy_runs(each: Each, runs: int) -> str:
    rows = []
    for name in SCENARIOS:
        dips, either = np.sum(each(partial(first_of, name, ()), runs, TESTING), axis=0)
        rows.append([name, str(runs), interval(dips, runs), interval(either - dips, runs)])
    return table(["healthy scenario", "runs", "a dip", "a possible dip alone"], rows)


def what_they_add(each: Each, runs: int) -> str:
    rows = []
    for base in BASES:
        drawn = [
            one
            for planted in DIP_MIX.values()
            for one in each(partial(first_of, base, planted), runs, TESTING + 500_000)
        ]
        dips, either = np.sum(drawn, axis=0)
        rows.append([base, str(len(drawn)), percent(dips, len(drawn)), percent(either, len(drawn))])
    return table(["planted in", "runs", "found as a dip", "as a dip or a possible one"], rows)
