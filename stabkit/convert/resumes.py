"""Logs that were appended to after a resume: leave out what the run trained again."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stabkit.convert.series import ConvertError, IntArray, Series, counted, shown

Place = tuple[int, int]  # the row where a resumed run begins, and the step it goes back to


def without_given_up(
    series: Mapping[str, Series], rows: Mapping[str, IntArray]
) -> tuple[dict[str, Series], int]:
    """Return the series without points that a resumed run trained again, and how many were dropped.

    When the steps of a row go back, earlier points from that step on belong to an attempt that was
    given up, in every series: one that is logged rarely may not have come so far again. If only a
    few of the row's series go back, these alone are cut. `rows` gives the row of each point. Raises
    ConvertError when the steps of a series start from the beginning several times.
    """
    backs = {name: _resumed(name, one.steps) for name, one in series.items()}
    places = _places(series, rows, backs)
    kept, dropped = {}, 0
    for name, one in series.items():
        good = np.ones(one.steps.size, dtype=bool)
        for row, step in places:
            good &= (rows[name] >= row) | (one.steps < step)
        for at in backs[name]:
            good[:at] &= one.steps[:at] < one.steps[at]
        kept[name] = Series(one.steps[good], one.values[good])
        dropped += int(np.sum(~good))
    return kept, dropped


def _places(
    series: Mapping[str, Series],
    rows: Mapping[str, IntArray],
    backs: Mapping[str, NDArray[np.int64]],
) -> list[Place]:
    """Return the rows at which at least half of the series that the row has go back."""
    steps: dict[int, int] = {}
    going_back: Counter[int] = Counter()
    for name, at in backs.items():
        for row, step in zip(rows[name][at].tolist(), series[name].steps[at].tolist(), strict=True):
            going_back[row] += 1
            steps[row] = step
    wide = {row: sum(bool((of == row).any()) for of in rows.values()) for row in going_back}
    return [(row, steps[row]) for row, count in going_back.items() if 2 * count >= wide[row]]


def _resumed(name: str, steps: IntArray) -> NDArray[np.int64]:
    """Return where the steps go back to one that was there before.

    A series in no order is not a resumed one: it goes back often, and to steps that it never had.
    """
    back = np.flatnonzero(np.diff(steps) < 0) + 1
    twice = np.unique(steps).size < steps.size
    if back.size >= 2 and twice and bool((steps[back] <= steps[0]).all()):
        raise ConvertError(
            f"{shown(name)}: its steps start from the beginning {counted(back.size, 'time')}; name "
            "a column that counts on by --map COLUMN=step, or count rows by --row-step",
            "--row-step",
        )
    return back[:0] if not twice and back.size > steps.size / 10 else back
