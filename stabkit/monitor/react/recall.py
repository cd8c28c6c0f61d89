"""Reads from the run folder what detectors must know of the steps before a resume."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from stabkit.detect.collapse import SPREADS
from stabkit.detect.online_tails import KEPT
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.events import OnlineEvent
from stabkit.rundir import RunDir
from stabkit.store.names import losses
from stabkit.store.reader import StoredRun

STEPS = KEPT  # of the layers; the detectors of spikes need no more
SIGNALS = {
    # kind -> columns of `layers`
    "spike": ["grad_norm"],
    "stale_moments": ["adam_rms"],
}
OF_ENTRY = ("time", "kind", "step", "cause", "onset", "layer")  # the rest of an entry are facts
LOSSES = ("spike", "departure", "nonfinite")  # kinds that look at losses before a resume


def confirmed_before(rundir: RunDir) -> list[OnlineEvent]:
    """Return the events that the log has as confirmed, each once."""
    found = {}
    for entry in rundir.read_entries():
        kind, onset, layer = (entry.get(name) for name in ("cause", "onset", "layer"))
        if entry.get("kind") == "confirmed" and isinstance(kind, str) and type(onset) is int:
            facts = {name: fact for name, fact in entry.items() if name not in OF_ENTRY}
            where = kind, onset, layer, str(facts.get("signal", facts.get("metric")))
            found[where] = OnlineEvent(kind, onset, layer, facts)
    return list(found.values())


def recalled_rows(rundir: RunDir, kind: str, before: int) -> tuple[Rows | None, bool]:
    """Return the rows of steps below `before`, and whether the last of them was not finite."""
    if kind == "dip" or not rundir.table("scalars").is_dir():
        return None, False
    run = StoredRun(rundir.path)
    scalars = run.scalars()
    scalars = scalars[scalars["step"] < before]
    counted = _series(scalars, "nonfinite_layers")[1]
    names = scalars["name"].astype(str).unique()
    wanted = losses(names) if kind in LOSSES else SPREADS if kind == "collapse" else ()
    named = {name: _series(scalars, name) for name in wanted}
    steps, layers, values = _layers(run, SIGNALS.get(kind, []), before)
    measured = {name: ~np.isnan(table) for name, table in values.items()}
    rows = Rows(steps, layers, values, measured, named)
    return rows, bool(len(counted) and counted[-1] > 0)


def recalled_evals(
    rundir: RunDir, before: int
) -> Iterator[tuple[str, Sequence[int], Sequence[BoolArray], float]]:
    """Yield metric, steps, correctness and chance of the evaluations below step `before`."""
    if not rundir.table("evals").is_dir():
        return
    run = StoredRun(rundir.path)
    for metric, evals in run.evals().groupby("metric", observed=True):
        # with several numbers of neighbors a metric is no single series
        correct = run.correct(str(metric)) if evals["k"].nunique() == 1 else None
        steps = evals["step"].to_numpy()
        if correct is not None and len(correct) == len(steps):
            old = steps < before
            yield str(metric), steps[old].tolist(), list(correct[old]), evals["chance"].iloc[0]


def recalled_rates(rundir: RunDir, before: int) -> list[tuple[int, float]]:
    """Return step and learning rate of steps below `before`: the highest of all groups."""
    if not rundir.table("scalars").is_dir():
        return []
    scalars = StoredRun(rundir.path).scalars()
    names = scalars["name"].astype(str)
    is_rate = (names == "lr") | names.str.startswith("lr.")
    rates = scalars[is_rate & (scalars["step"] < before)].groupby("step")["value"].max()
    return list(zip(rates.index.tolist(), rates.tolist(), strict=True))


def _series(scalars: pd.DataFrame, name: str) -> tuple[IntArray, FloatArray]:
    rows = scalars[scalars["name"] == name].drop_duplicates("step")
    return rows["step"].to_numpy(dtype=np.int64), rows["value"].to_numpy(dtype=np.float64)


def _layers(
    run: StoredRun, signals: Sequence[str], before: int
) -> tuple[IntArray, list[str], dict[str, FloatArray]]:
    table = run.signals(signals) if signals else pd.DataFrame()
    if not len(table):
        return np.zeros(0, dtype=np.int64), [], {}
    steps = np.unique(table["step"].to_numpy())
    steps = steps[steps < before][-STEPS:]
    table = table[table["step"].isin(steps)]
    layers = table.sort_values("depth")["layer"].astype(str).drop_duplicates().tolist()
    grids = {
        name: table.pivot(index="step", columns="layer", values=name)[layers].to_numpy(np.float64)
        for name in signals
    }
    return steps, layers, grids
