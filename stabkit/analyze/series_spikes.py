"""Find the spikes of series that have a name: losses, gradient norms of the whole run."""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.refused_series import attempt, refused
from stabkit.detect import find_spikes
from stabkit.detect.spikes import COLUMNS
from stabkit.store.reader import StoredRun

Series = tuple[NDArray[np.int64], NDArray[np.float64]]  # steps and values


def spikes_of_series(found: Mapping[str, Series], run: StoredRun) -> pd.DataFrame:
    """Return the rows of `find_spikes` on series of the whole run, such as losses.

    The columns are those of `raised_layers`: layer holds the name of the series, depth its
    position. A series with negative values is shifted so that its lowest value is as far above
    0 as its median was above it.
    """
    return joined(
        _spikes_of(run, name, i, steps, shifted(values))
        for i, (name, (steps, values)) in enumerate(found.items())
    )


def _spikes_of(
    run: StoredRun, name: str, position: int, steps: NDArray[np.int64], values: NDArray[np.float64]
) -> pd.DataFrame:
    find = partial(find_spikes, steps, values)
    return put_names(
        attempt(run, f"spikes of {name}", find, lambda: find_spikes([], [])), name, position
    )


def shifted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with none below 0, which a logarithm needs; as they are if none is.

    The lowest value becomes the distance of the median from it, so that the noise of low values
    is not blown up by the logarithm.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or (low := float(finite.min())) >= 0:
        return values
    return values - low + (float(np.median(finite)) - low)


def put_names(events: pd.DataFrame, layer: str, depth: int) -> pd.DataFrame:
    """Put the name and the depth of a layer or series before the other columns, in place."""
    if len(events):  # most series are healthy
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
    return events


def joined(found: Iterable[pd.DataFrame], *more: str) -> pd.DataFrame:
    """Return the events of all series as one table, ordered by onset and depth.

    `more` are columns besides those of `find_spikes`.
    """
    tables = list(found)
    some = [table for table in tables if len(table)]
    if some:
        spiked = pd.concat(some).sort_values(["onset", "depth"], ignore_index=True)
    else:
        spiked = pd.DataFrame(columns=["layer", "depth", *COLUMNS, *more])
    spiked.attrs["refused"] = next(filter(None, map(refused, tables)), "")
    return spiked
