"""What takes several runs to say of their events: restarts, order of layers, bursts before dips."""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.events import LONGEST
from stabkit.detect.association import EventTimes
from stabkit.detect.bursts import ONSETS
from stabkit.detect.dips import SHORTEST
from stabkit.detect.significance import answer_similarity


def between_seeds(runs: Sequence[Diagnosis]) -> float | None:
    """Return how far the answers of runs that differ in their seed agree at their ends.

    The mean of `answer_similarity` over all pairs; None with one run, or other samples.
    """
    if len(runs) < 2:
        return None
    last = [run.last_answers for run in runs]
    pairs = [
        answer_similarity(one, other)
        for one, other in combinations([bits for bits in last if bits is not None], 2)
        if one.shape[1] == other.shape[1]
    ]
    known = [value for value in pairs if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def told_dips(run: Diagnosis, between: float | None) -> pd.DataFrame:
    """Return the dips of the run with those told apart that came back as another solution.

    `between` is that of `between_seeds`; with None nothing can be told.
    """
    if between is None:
        return run.dips
    restarted = run.dips["similarity"] <= between
    return run.dips.assign(severity=run.dips["severity"].mask(restarted, "restart"))


def onsets(runs: Iterable[Diagnosis]) -> pd.DataFrame:
    """Return `layer_onsets` of every run, one below the other; column run in front."""
    empty = pd.DataFrame(columns=["run", *ONSETS]).astype(ONSETS)
    frames = [run.onsets.assign(run=run.name)[list(empty)] for run in runs if len(run.onsets)]
    return pd.concat(frames, ignore_index=True) if frames else empty


def bursts_and_dips(runs: Iterable[Diagnosis]) -> list[EventTimes]:
    """Return every run as `association` asks: do gradient bursts come before dips?

    A dip counts from the first evaluation that shows it: its onset is the last one that does not,
    after which the cause may still come. EventTimes are the steps at which both could be found.
    """
    watched = []
    for run in runs:
        steps = run.evals("knn_heldout")["step"].to_numpy()
        if len(steps) < SHORTEST or run.watched is None:
            continue
        first = int(max(steps[SHORTEST - 2], run.watched[0]))
        last = int(min(steps[-1], run.watched[1]))
        if first > last or last - first > LONGEST:
            continue
        found = run.dips
        shown = steps[np.searchsorted(steps, found["onset"], side="right")]
        ends = np.maximum(found["end"], shown)
        inside = (shown >= first) & (shown <= last)
        begun = run.bursts["onset"]
        watched.append(
            EventTimes(
                begun[begun.between(first, last)].to_numpy(),
                shown[inside],
                (first, last),
                np.minimum(ends[inside], last),
            )
        )
    return watched
