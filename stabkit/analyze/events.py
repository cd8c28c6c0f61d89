"""What the detectors find in a run, by the names the tables of a run use."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from stabkit.detect import (
    find_bursts,
    find_collapse,
    find_dips,
    find_spikes,
    find_stuck_loss,
    layer_onsets,
)
from stabkit.detect.association import Watched
from stabkit.detect.bursts import ONSETS
from stabkit.detect.collapse import NOTHING
from stabkit.detect.dips import SHORTEST
from stabkit.store.reader import Run

COLLAPSE = {
    "feature_std": find_collapse,
    "embedding_std": find_collapse,
    "effective_rank": find_collapse,
    "loss_relative": find_stuck_loss,
}
MIN_HISTORY = 20  # steps that `find_spikes` needs before the first it can find


def dips(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_dips` on an evaluation of the run, paired over its samples where bits are there.

    Also `end`: the recovery, or the last evaluation of a dip that the run ended in.
    """
    evals = run.evals(metric)
    found = find_dips(
        evals["step"].to_numpy(),
        evals["value"].to_numpy(),
        n=evals["n"].to_numpy(),
        correct=run.correct(metric),
        chance=float(evals["chance"].iloc[0]) if len(evals) else 0.0,
    )
    return found.assign(end=found["recovery"].fillna(evals["step"].max()))


def collapses(run: Run) -> pd.DataFrame:
    """Every sign of collapse that the run's scalars show; column signal in front, which it is.

    Where kNN ends above its untrained value, narrow features still tell images apart and a loss at
    chance is a hard task slowly learned: then only a loss at nothing counts.
    """
    scalars, learned = run.scalars(), _learned(run)
    found = []
    for signal, rows in scalars[scalars["name"].isin(COLLAPSE)].groupby("name", observed=True):
        events = COLLAPSE[str(signal)](rows["step"].to_numpy(), rows["value"].to_numpy())
        if learned:
            events = events[(signal == "loss_relative") & (events["level"] <= NOTHING)]
        events.insert(0, "signal", str(signal))
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
    """`find_spikes` on each layer; columns layer and depth in front, ordered by onset and depth."""
    found = []
    for (depth, layer), rows in run.signals().groupby(["depth", "layer"], observed=True):
        events = find_spikes(rows["step"].to_numpy(), rows[signal].to_numpy())
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
        found.append(events)
    if not found:
        return pd.DataFrame(columns=["layer", "depth", "onset", "peak", "end", "height", "ratio"])
    table = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
    return table.sort_values(["onset", "depth"], ignore_index=True)


def relative_norms(run: Run) -> pd.DataFrame:
    """Gradient norms over each layer's median in the run: step, layer, depth, value, relative.

    Layers without a gradient, such as frozen ones, are left out; medians are of finite values.
    """
    rows = run.signals()[["step", "layer", "depth", "grad_norm"]]
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


def bursts_and_dips(runs: Iterable[Run], gap: int = 10) -> list[Watched]:
    """Every run as `association` asks: do gradient bursts come before dips?

    A dip counts from the first evaluation that shows it: its onset is the last one that does not,
    after which the cause may still come. Watched are the steps at which both could be found.
    """
    watched = []
    for run in runs:
        steps = run.evals("knn_heldout")["step"].to_numpy()
        signals = run.signals()["step"].unique()
        if len(steps) < SHORTEST or len(signals) <= MIN_HISTORY:
            continue
        first = int(max(steps[SHORTEST - 2], signals[MIN_HISTORY]))
        last = int(min(steps[-1], signals[-1]))
        if first > last:
            continue
        found = dips(run)
        shown = steps[np.searchsorted(steps, found["onset"], side="right")]
        ends = np.maximum(found["end"], shown)
        inside = (shown >= first) & (shown <= last)
        begun = bursts(run, gap)["onset"]
        watched.append(
            Watched(
                begun[begun.between(first, last)].to_numpy(),
                shown[inside],
                (first, last),
                np.minimum(ends[inside], last),
            )
        )
    return watched
