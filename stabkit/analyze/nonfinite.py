"""Tell values that were lost for good from gradients that overflowed in a step or two."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.analyze.series import gradient_norms
from stabkit.detect.nonfinite import nonfinite_stretches
from stabkit.store.reader import StoredRun
from stabkit.store.tables import stored_table

Entry = dict[str, Any]


def nonfinite_entries(run: StoredRun, losses: Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """Return the entries for non-finite values, and those for overflows.

    A gradient norm that is not finite and comes back is an overflow: mixed precision passes over
    such steps by itself. Everything else is non-finite: a loss, a weight, a gradient that does not
    come back. Losses are looked at here too, since only some logs report them.
    """
    logged = [
        entry for entry in run.log_entries() if entry.get("kind") in ("nonfinite", "overflow")
    ]
    found = logged + _of_losses(run, losses, logged)
    lost = [entry for entry in found if not _came_back(run, entry)]
    return lost, [entry for entry in found if entry not in lost]


def names_of(entry: Entry) -> list[str]:
    """Return the layers and series that an entry names."""
    return [str(name) for key in ("layers", "names") for name in _listed(entry.get(key))]


def last_nonfinite(run: StoredRun, names: Collection[str]) -> int:
    """Return the last step at which one of these series, or a gradient, is not finite.

    -1 if none ever was.
    """
    table = run.scalars()
    recorded = set(map(str, table["name"].unique()))  # names of a log need not be text at all
    rows = table[table["name"].isin(recorded.intersection(names))]
    steps = [rows["step"][~np.isfinite(rows["value"])]]
    layers = run.signals()
    if "nonfinite_count" in layers:
        steps.append(layers["step"][layers["nonfinite_count"] > 0])
    return max((int(found.max()) for found in steps if len(found)), default=-1)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _of_losses(run: StoredRun, losses: Sequence[str], logged: Sequence[Entry]) -> list[Entry]:
    """Return an entry for each stretch of non-finite losses that the log does not tell of."""
    told = {(entry.get("step"), name) for entry in logged for name in names_of(entry)}
    table = run.scalars()
    found: dict[int, list[str]] = {}
    for name in losses:
        rows = table[table["name"] == name]
        steps = rows["step"].to_numpy()
        for first in nonfinite_stretches(~np.isfinite(rows["value"].to_numpy()))[0]:
            if (int(steps[first]), name) not in told:
                found.setdefault(int(steps[first]), []).append(name)
    return [{"kind": "nonfinite", "step": step, "names": n} for step, n in sorted(found.items())]


def _came_back(run: StoredRun, entry: Entry) -> bool:
    """Return whether the entry names gradient norms alone, and each was finite again later.

    A norm of the whole model was not if half of its values from there on are not finite: no scaler
    passes over so many steps. Where the run ends with such values, they are taken to pass if as
    many in a row have passed before.
    """
    step = int(entry.get("step") or 0)
    layers = [str(layer) for layer in _listed(entry.get("layers"))]
    names = [str(name) for name in _listed(entry.get("names"))]
    if not (layers or names) or len(gradient_norms(names)) < len(names):
        return False
    table = run.scalars()
    for name in names:
        rows = table[table["name"] == name]
        finite = np.isfinite(rows["value"].to_numpy())
        at = int(np.searchsorted(rows["step"].to_numpy(), step))
        if not (2 * finite[at:].sum() > finite[at:].size or _passed_before(finite, at)):
            return False
    return not layers or _layers_came_back(run, step, layers)


def _layers_came_back(run: StoredRun, step: int, layers: Sequence[str]) -> bool:
    """Return whether the gradients of all layers were not finite at the step, and were so again.

    Weights must have been finite all the time.
    """
    table = run.signals()
    if "grad_norm" not in table:
        return False
    if not set(layers) <= set(map(str, table["layer"].unique())):
        return False
    for layer in set(layers):
        rows = table[table["layer"].astype(str) == layer]
        finite = np.isfinite(rows["grad_norm"].to_numpy())
        at = int(np.searchsorted(rows["step"].to_numpy(), step))
        if at == len(rows) or rows["step"].iloc[at] != step or finite[at]:
            return False
        if not (finite[at:].any() or _passed_before(finite, at)):
            return False
    return _weights_stayed_finite(run, step, layers)


def _passed_before(finite: NDArray[np.bool_], at: int) -> bool:
    """Return whether all values from an index on are lost, but no more than came back before."""
    begins, ends = nonfinite_stretches(~finite[:at])
    longest = int((ends - begins).max()) + 1 if begins.size else 0
    return not finite[at:].any() and finite.size - at <= longest


def _weights_stayed_finite(run: StoredRun, step: int, layers: Sequence[str]) -> bool:
    """Return whether every norm of weights that was measured from the step on is finite.

    Read as stored: one that is null was not measured, which pandas does not tell from NaN.
    """
    columns = ["step", "layer", "param_norm"]
    stored = stored_table(run.path / "layers", "layers", columns, run.until("layers"))
    rows = stored.filter(stored["param_norm"].is_valid()).to_pandas()
    there = (rows["step"] >= step) & rows["layer"].astype(str).isin(layers)
    return bool(np.isfinite(rows["param_norm"][there]).all())
