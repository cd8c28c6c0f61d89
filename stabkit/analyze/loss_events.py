"""Find what happened to losses: spikes, a level left for good, unrest, a loss that never fell."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.refused_series import refused
from stabkit.analyze.series import without_parts
from stabkit.analyze.series_spikes import Series, joined, put_names, shifted, spikes_of_series
from stabkit.detect import find_departure, find_long_rises, find_loss_unrest
from stabkit.detect.collapse import CHANCE, NOTHING, SHORTEST
from stabkit.detect.departure import ABOVE_BEST, RATIO
from stabkit.detect.departure import COLUMNS as DEPARTURE
from stabkit.detect.frames import rows_frame
from stabkit.detect.loss_tail import ends_when_back, rose, spikes_that_stand_out
from stabkit.detect.robust import MAD_TO_STD, ZEROS, rounded_by, zeros_since
from stabkit.detect.slow_spikes import find_slow_spikes
from stabkit.detect.spikes import usable_series
from stabkit.detect.unrest import COLUMNS as UNREST
from stabkit.store.names import is_held_out
from stabkit.store.reader import StoredRun

ALONE = 1.5  # times what was expected: from there on a single value of a loss is a spike
STILL = 0.01  # standard deviation over level; many a loss at chance scatters less
TENTHS = 10  # of a run, whose medians are levels
MEDIAN_ERROR = 1.25  # standard errors of a mean of normal values that one of their median has
# Standard errors from which on a fall is one: between two levels, and from the highest of TENTHS.
SURE, SURE_OF_TENTHS = 2.0, 4.0


def loss_spikes(found: Mapping[str, Series], run: StoredRun) -> pd.DataFrame:
    """Return the rows of `spikes_of_series` on losses, without what hard batches explain.

    A single value counts only if it is `ALONE` times what was expected or more. A spike counts only
    if it rises above the values before it (`rose`) and stands out from the tail of its own series
    (`spikes_that_stand_out`). It ends when the loss is back (`ends_when_back`). Losses that have a
    level get rows for long rises as well (`find_long_rises`), unless a spike begins in them. In
    these rows `long` is true, and `ratio` is to the best level before. Last come slow spikes of
    these losses (`find_slow_spikes`) that overlap nothing else.
    """
    table = spikes_of_series(found, run)
    kept = lasts_or_is_large(table)
    for name in table["layer"].unique():
        steps, values = found[name]
        rows = table["layer"] == name
        series = usable_series(steps, shifted(values))
        kept[rows] &= rose(*series, table[rows]) & spikes_that_stand_out(*series, table[rows])
        table.loc[rows, "end"] = ends_when_back(*series, table[rows])
    kept &= (table["end"] > table["onset"]) | (table["ratio"] >= ALONE)
    spikes = table[kept].assign(long=False)
    quick = joined([spikes, *_long_rises(found, spikes)], "long")
    counted = joined([quick, *_slow_spikes(found, quick)], "long")
    counted.attrs["refused"] = refused(table)
    return counted


def _slow_spikes(found: Mapping[str, Series], others: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the slow spikes of each loss with a level that overlap none of the others."""
    level = of_level(found)
    for depth, (name, (steps, values)) in enumerate(found.items()):
        if name not in level:
            continue
        rows = find_slow_spikes(*usable_series(steps, shifted(values)))
        told = others[others["layer"] == name]
        apart = [
            bool(((told["end"] < row.onset) | (told["onset"] > row.end)).all())
            for row in rows.itertuples()
        ]
        yield put_names(rows[np.array(apart, dtype=bool)].assign(long=False), name, depth)


def _long_rises(found: Mapping[str, Series], spikes: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the long rises of each loss in which no spike begins."""
    level = of_level(found)
    for depth, (name, series) in enumerate(found.items()):
        if name in level:
            rises, onsets = find_long_rises(*series), spikes.loc[spikes["layer"] == name, "onset"]
            begins, ends = rises["onset"].to_numpy(), rises["end"].to_numpy()
            told = [bool(onsets.between(*both).any()) for both in zip(begins, ends, strict=True)]
            yield put_names(rises[~np.array(told, dtype=bool)].assign(long=True), name, depth)


def of_level(found: Mapping[str, Series]) -> dict[str, Series]:
    """Return the losses whose level is judged (`without_parts`)."""
    return {name: found[name] for name in without_parts({n: s for n, (s, _) in found.items()})}


def lasts_or_is_large(spikes: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each spike whether it is more than the small rise of a single value."""
    return (spikes["end"] > spikes["flagged"]) | (spikes["ratio"] >= ALONE)


def departures(found: Mapping[str, Series], ratio: float = RATIO) -> pd.DataFrame:
    """Return the rows of `find_departure` on each loss; the first column, series, names it.

    A loss that drops to exactly 0 and stays there has left too: its level is 0, its ratio NaN.
    """
    tables = []
    for name, series in found.items():
        rows = find_departure(*series, ratio=ratio)
        tables.append((rows if len(rows) else _zeroed(*series)).assign(series=name))
    columns = ["series", "onset", "end", "best", "level", "ratio"]
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


def above_best(found: Mapping[str, Series], left: pd.DataFrame) -> pd.DataFrame:
    """Return the losses that ended above their best level, with the columns of `departures`.

    Those that have `left` it, by `departures`, are not among them. Held-out losses are, however
    high they end.
    """
    held_out = {name: series for name, series in found.items() if is_held_out(name)}
    others = {n: s for n, s in of_level(found).items() if n not in set(left["series"])}
    rows = departures(others | held_out, ABOVE_BEST)
    return rows[rows["ratio"].notna()].reset_index(drop=True)


def unrest(found: Mapping[str, Series]) -> pd.DataFrame:
    """Return the rows of `find_loss_unrest` on each loss; the first column, series, names it."""
    tables = [rows_frame([], UNREST).assign(series="")]
    tables += [find_loss_unrest(*series).assign(series=name) for name, series in found.items()]
    return pd.concat(tables, ignore_index=True)[["series", *UNREST]]


def _zeroed(steps: NDArray[np.int64], values: NDArray[np.float64]) -> pd.DataFrame:
    """Return a row like that of `find_departure` if the loss is 0 from some step to its end.

    Some trainers write 0 for a loss that is not finite. A loss that came near 0 before is a task
    that was learned, written with few digits.
    """
    since, rows = zeros_since(values), []
    if since is not None and since >= ZEROS:
        first, before = np.median(values[:ZEROS]), np.median(values[since - ZEROS : since])
        if before > NOTHING * first > 0 and before >= rounded_by(values):
            rows.append((steps[since], steps[-1], float(before), 0.0, math.nan))
    return pd.DataFrame(rows, columns=list(DEPARTURE))


def stuck(found: Mapping[str, Series]) -> pd.DataFrame:
    """Return the losses that never fell, one row each: series, onset, end, start, level.

    Levels are medians of the first tenth, of any tenth, and of the last half. The last one must be
    so well known that a fall of 2 % from the first would be seen, and there must be none. No tenth
    may lie below the first: then the loss fell, and left later. Nor may the last half lie below the
    highest tenth, as where a loss rises first and is learned then. In a loss that hardly scatters a
    fall of 2 % counts as none. A loss of small batches at chance scatters more. If every loss is
    exactly 0 throughout, none was measured, or nothing is learned.
    """
    rows = []
    if found and not any(values.any() for _, values in found.values()):
        rows = [(name, steps[0], steps[-1], 0.0, 0.0) for name, (steps, _) in found.items()]
    for name, (steps, values) in found.items():
        usable = (values > 0) & np.isfinite(values)
        steps, values = steps[usable], values[usable]
        if len(values) < SHORTEST:
            continue
        tenths = np.array_split(values, TENTHS)
        levels = [float(np.median(part)) for part in tenths]
        start = levels[0]
        half = values[len(values) // 2 :]
        level = float(np.median(half))
        noise = MAD_TO_STD * np.median(np.abs(np.diff(half))) / math.sqrt(2)
        error = MEDIAN_ERROR * noise * math.sqrt(1 / len(tenths[0]) + 1 / len(half))
        little = (1 - CHANCE) * start
        still = little if np.std(half) <= STILL * start else 0.0
        fell = start - level > max(SURE * error, still) or SURE * error > little  # or may have
        away = max(start - min(levels), max(levels) - level)
        if not fell and away <= max(SURE_OF_TENTHS * error, still):
            rows.append((name, steps[0], steps[-1], start, level))
    return pd.DataFrame(rows, columns=["series", "onset", "end", "start", "level"])
