"""Find judged series that lack values while the others go on: some programs write NaN as a blank.

pandas writes NaN as a blank cell, JavaScript as null, and some loops leave it out. So the loss of a
run that diverged may end in nothing, and nothing can be judged there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.series import without_parts
from stabkit.store.names import has_level, is_total
from stabkit.store.reader import StoredRun

Steps = NDArray[np.int64]

PERIODS = 3  # a series has ended if it lacks so many values at its usual distance
LAST = 20  # usual: the largest of the last so many distances
HOLE = 0.1  # share of all steps: a shorter stretch between two values is no blank
FEWEST, SHARED = 3, 0.1  # values of a series that takes another's place; steps that both have
BLANK = "blank in steps"


def blank_series(
    run: StoredRun, losses: list[str], norms: list[str], metric: str
) -> dict[str, list[str]]:
    """Return for each table the judged series that are blank in some steps, in words.

    Parts of a total do not matter beside it. A series is not blank where another of its kind takes
    its place, as the loss of a second phase of training. A run of `stabkit train` has no blanks but
    lost rows (`store.gaps`).
    """
    if run.dir.is_of_train():
        return {}
    try:
        made = run.dir.read_meta()
    except (OSError, ValueError):
        made = {}
    log = made.get("converted")
    log = log if isinstance(log, dict) else {}
    scalars, evals = run.scalars(), run.evals()
    layers = run.signals(["grad_norm"])
    steps = [table["step"].to_numpy() for table in (scalars, evals, layers)]
    every = np.unique(np.concatenate([*steps, _silent(log)]))
    names = scalars["name"].astype(str)
    of = {name: scalars["step"].to_numpy()[names == name] for name in [*losses, *norms]}
    whole = without_parts({name: of[name] for name in losses})
    kinds = [
        ("scalars", {name: of[name] for name in losses if name in whole or is_total(name)}),
        ("scalars", {name: of[name] for name in losses if not has_level(name)}),
        ("scalars", {name: of[name] for name in norms}),
        ("evals", {metric: evals["step"].to_numpy()[evals["metric"] == metric]}),
    ]
    if log:  # a Monitor writes NaN itself
        kinds.append(("layers", {"grad_norm of every layer": _measured(layers)}))
    found: dict[str, list[str]] = {}
    for table, kind in kinds:
        for name, own in kind.items():
            for first, last in () if _counts_epochs(log, own, every) else _blanks(own, every):
                if not _replaced(own, kind, first, last):
                    found.setdefault(table, []).append(f"{name} {BLANK} {first} to {last}")
    return found


def _measured(layers: pd.DataFrame) -> Steps:
    """Return the steps at which any layer has a gradient norm."""
    return np.unique(layers["step"].to_numpy()[layers["grad_norm"].notna()])


def _blanks(own: Steps, every: Steps) -> list[tuple[int, int]]:
    """Return the first and the last step of each stretch in which a series lacks values.

    `own` are its steps and `every` those of the run, both in order. A gap between two values is
    blank if it spans a tenth of all steps or more, and is three times as long as the longest gap
    that spans less. The end is blank if it is three times as long as the longest of
    the last gaps that are not blank.
    """
    if own.size < 2:
        return []
    at = np.searchsorted(every, own)
    apart = np.diff(at)
    long = apart >= HOLE * every.size
    usual = apart[~long]
    if not usual.size:
        return []
    holes = long & (apart >= PERIODS * usual.max())
    found = [(at[i] + 1, at[i + 1] - 1) for i in np.flatnonzero(holes)]
    if every.size - 1 - at[-1] >= PERIODS * apart[~holes][-LAST:].max():
        found.append((at[-1] + 1, every.size - 1))
    return [(int(every[a]), int(every[b])) for a, b in found]


def _counts_epochs(log: Mapping[str, Any], own: Steps, every: Steps) -> bool:
    """Return whether a series of TensorBoard may be counted in epochs, and the others in steps."""
    return log.get("format") == "tensorboard" and own.size > 0 and own[-1] < HOLE * every[-1]


def _replaced(own: Steps, kind: Mapping[str, Steps], first: int, last: int) -> bool:
    """Return whether another series of the kind is there instead: they hardly share a step."""
    return any(
        ((other >= first) & (other <= last)).sum() >= FEWEST
        and np.isin(own, other).mean() <= SHARED
        for other in kind.values()
    )


def _silent(log: Mapping[str, Any]) -> Steps:
    """Return the steps of a log whose rows hold no value, evenly spread."""
    first, last, count = log.get("silent") or (0, 0, 0)
    return np.unique(np.linspace(first, last, count).astype(np.int64))
