"""What the detectors find in a run, by the names the tables of a run use.

A series that a detector refuses is named in a LeftOutWarning; what is returned then is empty and
says so: `refused(found)`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from stabkit.detect import (
    find_bursts,
    find_collapse,
    find_dips,
    find_drift,
    find_spikes,
    find_stuck_loss,
    layer_onsets,
)
from stabkit.detect.association import EventTimes
from stabkit.detect.bursts import ONSETS
from stabkit.detect.collapse import NOTHING
from stabkit.detect.dip_rows import MEDIAN_OF
from stabkit.detect.dips import SHORTEST
from stabkit.detect.significance import answer_similarity
from stabkit.rundir import left_out
from stabkit.store.reader import Run

LONGEST = 10_000_000  # steps: more are samples or seconds, and a null over them has no use
COLLAPSE = {
    "feature_std": find_collapse,
    "embedding_std": find_collapse,
    "effective_rank": find_collapse,
    "loss_relative": find_stuck_loss,
}
MIN_HISTORY = 20  # steps that `find_spikes` needs before the first it can find


def dips(run: Run, metric: str = "knn_heldout", between: float | None = None) -> pd.DataFrame:
    """`find_dips` on an evaluation of the run, paired over its samples where bits are there.

    Also `end`: the recovery, or the last evaluation of a dip that the run ended in; how long it
    lasted in `steps`, `samples` and `epochs` (NaN where the settings do not tell the batch, or the
    size of the data). `between` as of `between_seeds` tells restarts.
    """
    run = run.keeping()  # the bits are then those of the evaluations, while the run trains on
    evals = run.evals(metric)
    chance = float(evals["chance"].iloc[0]) if len(evals) else 0.0

    def find() -> pd.DataFrame:
        known = 0.0 if math.isnan(chance) else chance
        return find_dips(**_series(run, metric), chance=known, between=between)

    found = _sought(run, f"dips of {metric}", find, find_dips([], []))
    if math.isnan(chance):
        found["relative_depth"] = math.nan
    found = found.assign(end=found["recovery"].fillna(evals["step"].max()))
    steps = found["end"] - found["onset"]
    samples = steps * (_number(run, "train.batch") or math.nan)
    epochs = samples / (_number(run, "data.num_train") or math.nan)
    return found.assign(steps=steps, samples=samples, epochs=epochs)


def _number(run: Run, key: str) -> float:
    value = run.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def drifts(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_drift` on an evaluation of the run."""
    run = run.keeping()
    nothing = find_drift([], [])
    return _sought(run, f"drift of {metric}", lambda: find_drift(**_series(run, metric)), nothing)


def between_seeds(runs: Sequence[Run], metric: str = "knn_heldout") -> float | None:
    """How far the answers of runs that differ in their seed agree at their ends: the mean
    `answer_similarity` over all pairs. None with one run, or other samples.
    """
    if len(runs) < 2:
        return None
    bits = [run.correct(metric) for run in runs]
    last = [b[-MEDIAN_OF:] for b in bits if b is not None]
    pairs = [
        answer_similarity(one, other)
        for one, other in combinations(last, 2)
        if one.shape[1] == other.shape[1]
    ]
    known = [value for value in pairs if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _series(run: Run, metric: str) -> dict[str, Any]:
    evals = run.evals(metric)
    return {
        "step": evals["step"].to_numpy(),
        "accuracy": evals["value"].to_numpy(),
        "n": evals["n"].to_numpy() if counts_known(evals) else None,
        "correct": run.correct(metric),
    }


def counts_known(evals: pd.DataFrame) -> bool:
    """Whether it is known on how many samples; not so in a run converted without `--n`."""
    return bool((evals["n"] > 0).all())


def collapses(run: Run) -> pd.DataFrame:
    """Every sign of collapse that the run's scalars show; column signal in front, which it is.

    Where kNN ends above its untrained value, narrow features still tell images apart and a loss at
    chance is a hard task slowly learned: then only a loss at nothing counts.
    """
    scalars, learned = run.scalars(), _learned(run)
    found = []
    for name, rows in scalars[scalars["name"].isin(COLLAPSE)].groupby("name", observed=True):
        signal, series = str(name), (rows["step"].to_numpy(), rows["value"].to_numpy())
        find = partial(COLLAPSE[signal], *series)
        events = _sought(run, f"collapse of {signal}", find, COLLAPSE[signal]([], []))
        if learned:
            events = events[(signal == "loss_relative") & (events["level"] <= NOTHING)]
        events.insert(0, "signal", signal)
        found.append(events)
    if not any(len(events) for events in found):
        return pd.DataFrame(columns=["signal", "onset", "end", "start", "level"])
    return pd.concat([events for events in found if len(events)], ignore_index=True)


def _learned(run: Run) -> bool:
    values = run.evals("knn_heldout")["value"]
    return len(values) > 1 and final_level(values) > values.iloc[0]


def final_count(values: pd.Series) -> int:
    """A fifth of the evaluations: one alone is noisy, or inside a dip."""
    return max(1, round(len(values) / 5))


def final_level(values: pd.Series) -> float:
    """The median of the last fifth."""
    return float(values.tail(final_count(values)).median())


def spikes(run: Run, signal: str = "grad_norm") -> pd.DataFrame:
    """`find_spikes` on each layer; columns layer and depth in front, ordered by onset and depth.

    The more values a run has, the more of them stand out by chance: the threshold is a robust z of
    6 for up to 1,000 values and one more for every ten times as many, about what keeps false
    alarms from growing with the run (docs/detectors.md).
    """
    found = []
    none = find_spikes([], [])
    table = run.signals([signal])
    threshold = 6 + math.log10(max(1.0, table[signal].count() / 1000))
    for (depth, layer), rows in table.groupby(["depth", "layer"], observed=True):
        series = rows["step"].to_numpy(), rows[signal].to_numpy()
        find = partial(find_spikes, *series, threshold=threshold)
        events = _sought(run, f"spikes of {signal} in {layer}", find, none.copy())
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
        found.append(events)
    if not found:
        return pd.DataFrame(columns=["layer", "depth", "onset", "peak", "end", "height", "ratio"])
    spiked = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
    spiked.attrs["refused"] = any(refused(events) for events in found)
    return spiked.sort_values(["onset", "depth"], ignore_index=True)


def relative_norms(run: Run) -> pd.DataFrame:
    """Gradient norms over each layer's median in the run: step, layer, depth, value, relative.

    Layers without a gradient, such as frozen ones, are left out; medians are of finite values.
    """
    rows = run.signals(["grad_norm"])
    rows = rows.assign(layer=rows["layer"].astype(str)).rename(columns={"grad_norm": "value"})
    # a value that was measured and is no number stays; a layer that never had one goes
    rows = rows[rows.groupby("layer")["value"].transform("count") > 0]
    finite = rows["value"].where(np.isfinite(rows["value"]))
    middle = finite.groupby(rows["layer"]).transform("median")
    return rows.assign(relative=rows["value"] / middle.where(middle > 0)).reset_index(drop=True)


def bursts(run: Run, gap: int = 10) -> pd.DataFrame:
    """`find_bursts` on the gradient spikes of the run."""
    return find_bursts(spikes(run), gap)


def onsets(runs: Iterable[Run], gap: int = 10) -> pd.DataFrame:
    """`layer_onsets` of every run, one below the other; column run in front."""
    found = [(run.name, layer_onsets(spikes(run), gap)) for run in runs]
    empty = pd.DataFrame(columns=["run", *ONSETS]).astype(ONSETS)
    frames = [frame.assign(run=name)[list(empty)] for name, frame in found if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else empty


def bursts_and_dips(runs: Iterable[Run], gap: int = 10) -> list[EventTimes]:
    """Every run as `association` asks: do gradient bursts come before dips?

    A dip counts from the first evaluation that shows it: its onset is the last one that does not,
    after which the cause may still come. Watched are the steps at which both could be found.
    """
    watched = []
    for run in runs:
        steps = run.evals("knn_heldout")["step"].to_numpy()
        signals = run.signals([])["step"].unique()
        if len(steps) < SHORTEST or len(signals) <= MIN_HISTORY:
            continue
        first = int(max(steps[SHORTEST - 2], signals[MIN_HISTORY]))
        last = int(min(steps[-1], signals[-1]))
        if first > last or last - first > LONGEST:
            continue
        found = dips(run)
        shown = steps[np.searchsorted(steps, found["onset"], side="right")]
        ends = np.maximum(found["end"], shown)
        inside = (shown >= first) & (shown <= last)
        begun = bursts(run, gap)["onset"]
        watched.append(
            EventTimes(
                begun[begun.between(first, last)].to_numpy(),
                shown[inside],
                (first, last),
                np.minimum(ends[inside], last),
            )
        )
    return watched


def refused(found: pd.DataFrame) -> bool:
    """Whether nothing was found because the series, or one of them, was refused."""
    return bool(found.attrs.get("refused", False))


def _sought(
    run: Run, what: str, find: Callable[[], pd.DataFrame], nothing: pd.DataFrame
) -> pd.DataFrame:
    try:
        return find()
    except ValueError as error:
        left_out(run.path, str(error), what)
        nothing.attrs["refused"] = True
        return nothing
