"""What a stricter bar of `find_dips` would cost: false alarms in each scenario against power."""

from functools import partial

import numpy as np
from scipy import stats

from benchmarks.calibration.dip_rules import clearest, ours
from benchmarks.calibration.dips import BASES, FEW_RUNS, power_on_mix
from benchmarks.calibration.scores import SILENT, TESTING, Each, interval, percent, table
from stabkit.detect.simulate import HEALTHY, healthy

FACTORS = (1.0, 1.05, 1.1, 1.2, 1.3, 1.5)  # of the default bar
SCENARIOS = [name for name in HEALTHY if name not in FEW_RUNS]  # the others take long


def _clearest(name: str, seed: int) -> float:
    return clearest(healthy(name, seed))


def stricter_table(each: Each, runs: int) -> str:
    """Return a row for each factor; `runs`: healthy runs of each scenario."""
    alarms = np.array([
        np.sum(np.array(each(partial(_clearest, name), runs, TESTING))[:, None] >= FACTORS, axis=0)
        for name in SCENARIOS
    ])  # fmt: skip
    upper = stats.beta.ppf(0.975, alarms + 1, runs - alarms)  # Clopper and Pearson
    rows = []
    for i, factor in enumerate(FACTORS):
        power = power_on_mix(each, ours, factor, max(4, runs // 24))
        of_base = [[share for (base, _), share in power.items() if base == b] for b in BASES]
        worst = int(alarms[:, i].argmax())
        rows.append([
            f"{factor:g}",
            interval(alarms[:, i].sum(), runs * len(SCENARIOS)),
            f"{SCENARIOS[worst]}: {interval(alarms[worst, i], runs)}",
            str(np.count_nonzero(alarms[:, i] > SILENT * runs)),
            str(np.count_nonzero(upper[:, i] > SILENT)),
            *(percent(sum(shares), len(shares)) for shares in of_base),
        ])  # fmt: skip
    head = ["bar", "healthy runs that alarm", "highest", "scenarios above 1 %",
            "with an upper end above 1 %", *(f"found, {base}" for base in BASES)]  # fmt: skip
    title = f"### Dips: a stricter bar\n\n{len(SCENARIOS)} scenarios, {runs:,} runs of each.\n\n"
    return title + table(head, rows)
