"""Falls that the seeds of a setting share: their mean shows what the noise of one run hides."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.cells import Cell, cell_label, group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.detect import find_dips, find_drift
from stabkit.detect.dips import SHORTEST
from stabkit.printing import counted

FEWEST = 3  # runs whose mean is searched
WHOLE = 0.9  # of the longest run's steps; a run that stopped before would shorten the mean of all
BESIDE = 5  # evaluations that tell how far each run falls
# The level of the test over runs. It does not correct for the windows that were searched: that is
# the detectors' part. Both together let 0.8 % of sets of five healthy simulated runs pass, as many
# as at .01 (800 sets with other seeds than those of docs/error-rates.md).
ALPHA = 0.05

Array = NDArray[np.float64]


class SharedFall(NamedTuple):
    """A fall of the mean accuracy of a cell's runs; `cell` holds those that the mean is taken of.

    Steps of onset, trough and recovery (NaN if there is none), depth as a fraction; `p_value` of a
    t-test over the runs; `alone`: how many of them show a dip or a drift there by themselves.
    """

    cell: Cell
    onset: int
    trough: int
    recovery: float
    depth: float
    p_value: float
    alone: int


def shared_falls(runs: Diagnoses) -> list[SharedFall]:
    """Return the dips and drifts in the mean accuracy of each cell of three runs or more.

    The mean is taken over the steps at which all were evaluated, and searched by `find_dips` and
    `find_drift` without the samples' answers. Seeds have nothing in common but their setting, so a
    fall counts if it is larger than its scatter from run to run explains (t-test, p of at most
    `ALPHA`), whatever the noise within a run. Runs that stopped early are left out, and so is a
    fall that every run shows alone.
    """
    return [fall for cell in group_cells(runs) for fall in _falls_of(cell)]


def mean_falls(step: NDArray[np.int64], accuracy: Array) -> pd.DataFrame:
    """Return onset, trough, recovery, depth and p_value of the falls that runs share.

    accuracy [runs, evals] in 0..1; step [evals].
    """
    mean = accuracy.mean(axis=0)
    dips = find_dips(step, mean)
    found = pd.concat([dips, find_drift(step, mean, dips=dips)])
    found = found[["onset", "trough", "recovery", "depth"]].assign(
        p_value=[_p_value(step, accuracy, row.onset, row.trough) for row in found.itertuples()]
    )
    return found[found["p_value"] <= ALPHA].sort_values("onset", ignore_index=True)


def shared_in_words(falls: Sequence[SharedFall]) -> list[str]:
    """Say each fall in a sentence."""
    return [_words(fall) for fall in falls]


def _falls_of(cell: Cell) -> list[SharedFall]:
    runs = [run for run in cell.runs if len(run.accuracy.evals) >= SHORTEST]
    ends = [run.accuracy.evals["step"].max() for run in runs]
    runs = [run for run, end in zip(runs, ends, strict=True) if end >= WHOLE * max(ends)]
    if len(runs) < FEWEST or len({run.accuracy.metric for run in runs}) > 1:
        return []
    cell = replace(cell, runs=tuple(runs))
    values = pd.concat(
        [run.accuracy.evals.set_index("step")["value"] for run in runs], axis=1, join="inner"
    ).dropna()
    if len(values) < SHORTEST:
        return []
    found = mean_falls(values.index.to_numpy(), values.to_numpy().T)
    falls = []
    for row in found.itertuples():
        alone = sum(_shows(run, row.onset, row.trough, row.recovery) for run in runs)
        if alone < len(runs):
            falls.append(
                SharedFall(cell, row.onset, row.trough, row.recovery, row.depth, row.p_value, alone)
            )
    return falls


def _p_value(step: NDArray[np.int64], accuracy: Array, onset: int, trough: int) -> float:
    """Return how often runs that do not fall on average would fall so far."""
    from scipy import stats  # slow to import, and most means do not fall

    high, low = np.searchsorted(step, [onset, trough])
    before = accuracy[:, max(0, high - BESIDE + 1) : high + 1].mean(axis=1)
    after = accuracy[:, max(high + 1, low - BESIDE // 2) : low + BESIDE // 2 + 1].mean(axis=1)
    return float(stats.ttest_1samp(before - after, 0.0, alternative="greater").pvalue)


def _shows(run: Diagnosis, onset: int, trough: int, recovery: float) -> bool:
    """Return whether a run has a dip or a drift of its own within the fall."""
    end = trough if np.isnan(recovery) else recovery
    own = [(dip.onset, dip.end) for dip in run.accuracy.dips.itertuples()]
    own += [(drift.onset, drift.trough) for drift in run.accuracy.drifts.itertuples()]
    return any(first <= end and onset <= last for first, last in own)


def _words(fall: SharedFall) -> str:
    number = len(fall.cell.runs)
    label = cell_label(fall.cell)
    back = "does not come back"
    if not np.isnan(fall.recovery):
        back = f"is back at step {fall.recovery:,.0f}"
    alone = f"{counted(fall.alone, 'run')} of them" if fall.alone else "no run"
    shows = "show" if fall.alone > 1 else "shows"
    return (
        f"Runs fall together ({label}): the mean of {number} runs falls by "
        f"{100 * fall.depth:.1f} points from step {fall.onset:,}\n(p = {fall.p_value:.1g} over the "
        f"runs), is lowest at step {fall.trough:,} and {back}; {alone} {shows} it by itself."
    )
