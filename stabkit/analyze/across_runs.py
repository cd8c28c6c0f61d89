"""Find what only several runs can tell: restarts, the order of layers, bursts before dips."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.accuracy_events import shown_from
from stabkit.analyze.cells import group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.detect import shallow_first
from stabkit.detect.association import EventTimes
from stabkit.detect.bursts import ONSETS
from stabkit.detect.dip_windows import SHORTEST_FLANK
from stabkit.detect.dips import SHORTEST
from stabkit.detect.onset_order import OrderTest

# Steps. A longer run counts samples or seconds, which `association` cannot use.
LONGEST = 10_000_000


def between_seeds(runs: Sequence[Diagnosis]) -> float | None:
    """Return how far the final answers of runs that differ in their seed agree.

    This is the mean of `answer_similarity` over all pairs of runs. None with one run, or if the
    samples differ.
    """
    if len(runs) < 2:
        return None
    shares: dict[int, list[NDArray[np.float64]]] = {}  # by the number of samples
    for run in runs:
        answers = run.accuracy.last_answers
        if answers is not None and (share := answers.mean(axis=0)).std() > 0:
            shares.setdefault(len(share), []).append((share - share.mean()) / share.std())
    # The correlation of two runs is the mean product of their standardized shares, so the sum over
    # all pairs follows from the sum over all runs: thousands of seeds have millions of pairs.
    pairs = sum(len(group) * (len(group) - 1) / 2 for group in shares.values())
    total = sum(
        (np.square(np.sum(group, axis=0)).sum() - np.square(group).sum()) / (2 * samples)
        for samples, group in shares.items()
    )
    return float(total / pairs) if pairs else None


def told_dips(run: Diagnosis, between: float | None) -> pd.DataFrame:
    """Return the dips of a run, with `restart` as the severity of those that are restarts.

    After a restart the answers agree with those before no better than `between`, the agreement of
    two seeds. If `between` is None, restarts cannot be told.
    """
    dips = run.accuracy.dips
    if between is None:
        return dips
    restarted = dips["similarity"] <= between
    return dips.assign(severity=dips["severity"].mask(restarted, "restart"))


def onsets(runs: Iterable[Diagnosis]) -> pd.DataFrame:
    """Return the rows of `layer_onsets` for all runs; column run comes first."""
    empty = pd.DataFrame(columns=["run", *ONSETS]).astype(ONSETS)
    found = [(run.name, run.gradients.onsets) for run in runs]
    frames = [rows.assign(run=name)[list(empty)] for name, rows in found if len(rows)]
    return pd.concat(frames, ignore_index=True) if frames else empty


def order_test(
    runs: Iterable[Diagnosis], shallow: str | None = None, deep: str | None = None
) -> OrderTest:
    """Return `shallow_first` of the bursts of all runs."""
    items = list(runs)
    return shallow_first(onsets(items), shallow, deep, recorded_every(items))


def recorded_every(runs: Iterable[Diagnosis]) -> int:
    """Return the most steps from one gradient norm to the next, over the runs that burst."""
    return max((run.gradients.every for run in runs if len(run.gradients.onsets)), default=1)


def bursts_and_dips(runs: Diagnoses) -> list[EventTimes]:
    """Return every run in the form in which `event_association` asks: do bursts precede dips?

    A dip counts from the first evaluation that shows it, and is dated late by the steps since the
    evaluation before, which did not show it. Both are watched from the first step at which the
    detectors can find a burst and show a dip. Runs of one cell have one schedule.
    """
    watched = []
    for number, cell in enumerate(group_cells(runs)):
        for run in cell.runs:
            steps = run.accuracy.evals["step"].to_numpy()
            if len(steps) < SHORTEST or run.gradients.watched is None:
                continue
            first = int(max(steps[SHORTEST_FLANK], run.gradients.watched[0]))
            last = int(min(steps[-1], run.gradients.watched[1]))
            if first > last or last - first > LONGEST:
                continue
            onset = run.accuracy.dips["onset"].to_numpy()
            shown = shown_from(steps, onset)
            inside = (shown >= first) & (shown <= last)
            begun = run.gradients.bursts["onset"]
            watched.append(
                EventTimes(
                    begun[begun.between(first, last)].to_numpy(),
                    shown[inside],
                    (first, last),
                    (shown - onset)[inside],
                    f"cell {number}",
                )
            )
    return watched
