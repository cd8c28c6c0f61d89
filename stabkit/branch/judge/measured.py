"""Measure one branch: did the event come back, how deep, for how long, and what was left."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from stabkit.analyze.accuracy_events import counts_known
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.loss_events import loss_spikes
from stabkit.detect import find_bursts, find_dips
from stabkit.detect.bursts import burst_gap
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.spikes import MIN_HISTORY, usable_series
from stabkit.store.names import losses
from stabkit.store.reader import StoredRun

MARGIN = 2  # evaluations around the event within which the same event may begin
MARGIN_STEPS = 10  # the same for a run without evaluations
BEFORE = 3  # evaluations, up to the onset, whose median is the level before the event
LAST = 3  # evaluations whose mean is the accuracy at the horizon
KINDS = ("dip", "burst", "loss_spike", "nonfinite", "step")  # what a branch may be judged by


class ParentEvent(NamedTuple):
    """What happened in the parent. A step that is no event stands for a dip near it."""

    kind: str
    onset: int
    end: int


class Measured(NamedTuple):
    """One branch. Accuracies are in points (percent).

    `event`: it happened again, or accuracy fell earlier and was still low at its time. `moved`:
    such an event happened at another time after the branch began. `area`: points x steps below the
    level before the event. `depth`: how far the lowest point is below that level, from the onset
    on. `recovered`: no event, or one that ended before the horizon. `last`: at the horizon. Area,
    depth and last are NaN if the run was never evaluated.
    """

    event: bool
    moved: bool
    area: float
    depth: float
    recovered: bool
    last: float


class Joined(NamedTuple):
    """The accuracy of a branch, after that of its parent up to its begin."""

    evals: pd.DataFrame
    correct: NDArray[np.bool_] | None


def after_parent(
    branch: StoredRun, parent: StoredRun, metric: str, begin: int, horizon: int
) -> Joined:
    """Return the parent's evaluations before a branch began, and the branch's up to the horizon."""
    own, before = branch.evals(metric), parent.evals(metric)
    mine = (own["step"] >= begin) & (own["step"] <= horizon)
    first = own["step"][mine].min() if mine.any() else begin + 1
    theirs = (before["step"] <= begin) & (before["step"] < first)
    bits, older = branch.correct(metric), parent.correct(metric)
    correct = None
    if bits is not None and older is not None and bits.shape[1] == older.shape[1]:
        correct = np.concatenate([older[theirs.to_numpy()], bits[mine.to_numpy()]])
    return Joined(pd.concat([before[theirs], own[mine]], ignore_index=True), correct)


def level_before(parent: StoredRun, metric: str, onset: int) -> float:
    """Return the level before the event, in points. Raises ValueError without an evaluation."""
    evals = parent.evals(metric)
    values = evals["value"][evals["step"] <= onset].tail(BEFORE)
    if values.isna().all():
        raise ValueError(f"{parent.path}: no evaluation of {metric} up to the onset, step {onset}")
    return 100 * float(values.median())


def measure(
    branch: StoredRun, parent: StoredRun, metric: str, event: ParentEvent, begin: int, horizon: int
) -> Measured:
    """Measure a branch. Raises ValueError if the parent was evaluated and the branch was not."""
    seen = after_parent(branch, parent, metric, begin, horizon)
    found = _found(seen, branch, parent, event.kind, begin)
    margin = MARGIN * _every(parent, metric) or MARGIN_STEPS
    inside = found["onset"].between(event.onset - margin, event.end + margin)
    # A change may make accuracy fall at once, before the event was due. Such a fall is dated up to
    # an evaluation before the begin. If it goes on through the event, nothing was prevented.
    falls_on = (found["trough"] > begin) & (found["recovery"] > event.onset)
    inside |= (found["onset"] < event.onset) & falls_on
    happened = bool(inside.any())
    area, depth, last = math.nan, math.nan, math.nan
    if len(parent.evals(metric)):
        area, depth, last = _accuracy(seen, branch, parent, metric, event, begin)
    return Measured(
        event=happened,
        moved=bool((~inside & (found["onset"] >= begin)).any()),
        area=area,
        depth=depth,
        recovered=not happened or bool(found["recovered"][inside].all()),
        last=last,
    )


def _accuracy(
    seen: Joined, branch: StoredRun, parent: StoredRun, metric: str, event: ParentEvent, begin: int
) -> tuple[float, float, float]:
    """Return area, depth and last; see `Measured`."""
    after = seen.evals[(seen.evals["step"] >= begin) & seen.evals["value"].notna()]
    if not (after["step"] > begin).any():
        raise ValueError(f"{branch.path}: no evaluation of {metric} after step {begin}")
    steps, values = after["step"].to_numpy(float), 100 * after["value"].to_numpy(float)
    below = np.maximum(0.0, level_before(parent, metric, event.onset) - values)
    depth = float(below[steps >= min(event.onset, steps[-1])].max())
    return float(trapezoid(below, steps)), depth, float(values[-LAST:].mean())


def _every(run: StoredRun, metric: str) -> float:
    steps = np.unique(run.evals(metric)["step"])
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 0.0


def _found(
    seen: Joined, branch: StoredRun, parent: StoredRun, kind: str, begin: int
) -> pd.DataFrame:
    """Return onset of each event of the kind, and whether it was over at the end.

    A dip has a trough and a recovery too, infinite if there was none; other events last no time.
    """
    if kind == "nonfinite":
        entries = Diagnosis(branch).nonfinite
        onsets = [int(entry.get("step") or 0) for entry in entries]
        return _momentary(pd.Series(onsets, dtype="int64"), recovered=False)
    if kind == "burst":
        return _bursts(branch, parent, begin)
    if kind == "loss_spike":
        return _loss_spikes(branch, parent, begin)
    evals = seen.evals
    chance = evals["chance"].iloc[0]
    dips = find_dips(
        evals["step"].to_numpy(),
        evals["value"].to_numpy(),
        evals["n"].to_numpy() if counts_known(evals) else None,
        seen.correct,
        chance=0.0 if pd.isna(chance) else float(chance),
    )
    return pd.DataFrame(
        {
            "onset": dips["onset"],
            "trough": dips["trough"],
            "recovery": dips["recovery"].fillna(math.inf),
            "recovered": dips["recovery"].notna(),
        }
    )


def _momentary(onsets: "pd.Series[int]", recovered: bool) -> pd.DataFrame:
    """Return events that last no time."""
    return pd.DataFrame(
        {"onset": onsets, "trough": onsets, "recovery": onsets, "recovered": recovered}
    )


def _loss_spikes(branch: StoredRun, parent: StoredRun, begin: int) -> pd.DataFrame:
    """Return the spikes of the parent's losses before step `begin` and the branch's after."""
    before, own = parent.scalars(), branch.scalars()
    table = pd.concat([before[before["step"] < begin], own[own["step"] >= begin]])
    table["name"] = table["name"].astype(str)
    series = {
        name: (rows["step"].to_numpy(), rows["value"].to_numpy())
        for name, rows in table.groupby("name")
        if losses([name]) and np.isfinite(rows["value"]).sum() > MIN_HISTORY
    }
    gap = burst_gap(steps for steps, _ in series.values())
    spikes = find_bursts(loss_spikes(series, branch), gap)
    return _momentary(spikes["onset"], recovered=True)


def _bursts(branch: StoredRun, parent: StoredRun, begin: int) -> pd.DataFrame:
    """Return bursts of the parent's gradient norms before `begin` and the branch's after."""
    before, own = parent.signals("grad_norm"), branch.signals("grad_norm")
    table = pd.concat([before[before["step"] < begin], own[own["step"] >= begin]])
    table["layer"] = table["layer"].astype(str)  # categories of two runs may differ
    names, series = [], []
    for (depth, layer), rows in table.groupby(["depth", "layer"]):
        series.append(usable_series(rows["step"].to_numpy(), rows["grad_norm"].to_numpy()))
        names.append({"layer": layer, "depth": depth})
    spikes = [
        rows.assign(**name)
        for rows, name in zip(find_layer_spikes(series), names, strict=True)
        if len(rows)
    ]
    if not spikes:
        return _momentary(pd.Series([], dtype="int64"), recovered=True)
    gap = burst_gap(steps for steps, _ in series)
    bursts = find_bursts(pd.concat(spikes, ignore_index=True), gap)
    return _momentary(bursts["onset"], recovered=True)
