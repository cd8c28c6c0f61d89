"""Reduce what a run recorded to few stretches of steps: what is typical and what stands out."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.curves import loss_events
from stabkit.analyze.plots.layer_map import stretch_width
from stabkit.analyze.plots.signal_styles import LAYERS, SignalStyle, run_styles
from stabkit.store.schema import KEYS
from stabkit.store.tables import stored_table

ACCURACY = "accuracy"  # the kind of the accuracy that is judged, a share
MEASURED = ("layer", "run", ACCURACY)  # kinds of rows that hold values of a signal
HEAD = ["run", "of", "kind", "signal", "layer", "depth", "step", "end", "median", "extreme"]


def signal_rows(run: Diagnosis) -> pd.DataFrame:
    """Return the rows of one run, as `signals_table` describes them.

    Columns are `HEAD`; `run` and `of` are empty.
    """
    layers, null = _recorded(run)
    scalars, styles = run.tables.scalars(), run_styles(run)
    evals = run.accuracy.evals[["step", "value"]].assign(name=run.accuracy.metric)
    of_run = pd.concat([f for f in (evals, scalars) if len(f)] or [scalars], ignore_index=True)
    of_run["name"] = of_run["name"].astype(str)
    of_run = of_run[of_run["name"].isin(styles)]
    steps = np.union1d(layers["step"], of_run["step"])
    if not len(steps):
        return pd.DataFrame(columns=HEAD)
    width = stretch_width(steps)

    def stretch(step: pd.Series) -> pd.Series:
        return (steps[0] + (step - steps[0]) // width * width).rename("step")

    names = [name for name in layers if name not in KEYS]
    known = [name for name in LAYERS if name in names]
    keys = [layers["depth"], layers["layer"].astype(str), stretch(layers["step"])]
    parts = [
        _stretched(layers[name], null[name], keys, LAYERS.get(name, SignalStyle("linear"))).assign(
            kind="layer", signal=name
        )
        for name in [*known, *(name for name in names if name not in known)]
    ]
    for name, style in styles.items():
        rows = of_run[of_run["name"] == name]
        nothing = pd.Series(False, index=rows.index)
        parts.append(_stretched(rows["value"], nothing, [stretch(rows["step"])], style))
        kind = ACCURACY if name == run.accuracy.metric else "run"
        parts[-1] = parts[-1].assign(kind=kind, signal=name)
    for part in parts:
        part["end"] = np.minimum(part["step"] + width - 1, steps[-1])
    # a band to the end of the run would hide what it is laid over: a dip that is open is its onset
    dips = run.accuracy.dips
    ends = dips["end"].where(dips["recovery"].notna(), dips["onset"])
    parts.append(pd.DataFrame({"step": dips["onset"], "end": ends}).assign(kind="dip"))
    of_loss = [event for name in run.loss.names for event in loss_events(run, name)]
    parts.append(pd.DataFrame(of_loss, columns=["step", "end"]).assign(kind="loss event"))
    beta2 = scalars[(scalars["name"] == "beta2") & scalars["value"].between(0, 1, inclusive="left")]
    ceiling = 1 / np.sqrt(1 - beta2["value"].to_numpy(dtype=float))
    parts.append(
        pd.DataFrame(
            {"step": beta2["step"], "end": beta2["step"].shift(-1, fill_value=int(steps[-1]))}
            | {"median": ceiling, "kind": "ceiling", "signal": "adam_rms"}
        )
    )
    whole = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    # float32 is as precise as the stored values, and halves the size of the CSV
    kinds = {"depth": "Int16", "end": "Int64", "median": "float32", "extreme": "float32"}
    with np.errstate(over="ignore"):  # values too large for float32 become infinite
        return whole.reindex(columns=HEAD).astype(kinds)


def _recorded(run: Diagnosis) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of layers, and where it is null.

    A null was not measured. A NaN was measured, which must be shown.
    """
    stored = stored_table(run.path / "layers", "layers", until=run.stored.until("layers"))
    frame: pd.DataFrame = stored.to_pandas()
    once = ~frame.duplicated(KEYS)
    null = {n: stored[n].is_null().to_numpy() for n in stored.column_names if n not in KEYS}
    return frame[once], pd.DataFrame(null, index=frame.index)[once]


def _stretched(
    values: pd.Series, null: pd.Series, keys: Sequence[pd.Series], style: SignalStyle
) -> pd.DataFrame:
    """Return the keys, median and extreme of each stretch that has a value."""
    there = ~null
    finite = np.isfinite(values)
    groups = values.where(finite)[there].groupby([key[there] for key in keys], observed=True)
    extreme = groups.min() if style.low else groups.max()
    bad = (~finite)[there].groupby([key[there] for key in keys], observed=True).any()
    table = pd.DataFrame({"median": groups.median(), "extreme": extreme.mask(bad, math.inf)})
    return table.reset_index()
