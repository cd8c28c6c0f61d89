"""Logs that were appended to after a resume: leave out what the run trained again."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stabkit.convert.series import ConvertError, IntArray, Series, shown
from stabkit.printing import counted

Place = tuple[int, int]  # the row where a resumed run begins, and the step it goes back to


def without_given_up(
    series: Mapping[str, Series], rows: Mapping[str, IntArray]
) -> tuple[dict[str, Series], tuple[int, int]]:
    """Return the series without points that a resumed run trained again, and those numbers.

    The numbers are of the points that were dropped, and of those among them that are not finite.
    When the steps of a row go back, earlier points from that step on belong to an attempt that was
    given up, in every series: one that is logged rarely may not have come so far again. If most
    series do not go back there, only those that do are cut. `rows` gives the row of each point.
    Raises ConvertError when the steps of a series start from the beginning several times.
    """
    backs = {name: _resumed(name, one.steps) for name, one in series.items()}
    places = _places(series, rows, backs)
    kept, dropped, lost = {}, 0, 0
    for name, one in series.items():
        good = np.ones(one.steps.size, dtype=bool)
        for row, step in places:
            good &= (rows[name] >= row) | (one.steps < step)
        for at in backs[name]:
            good[:at] &= one.steps[:at] < one.steps[at]
        kept[name] = Series(one.steps[good], one.values[good])
        dropped += int(np.sum(~good))
        lost += int(np.sum(~good & ~np.isfinite(one.values)))
    return kept, (dropped, lost)


def given_up_words(number: int, not_finite: int, why: str) -> str:
    """Say how many values were left out, and how many of them were not finite."""
    lost = f", {not_finite} of them not finite," if not_finite else ""
    return f"{counted(number, 'value')}{lost} left out {why}"


def _places(
    series: Mapping[str, Series],
    rows: Mapping[str, IntArray],
    backs: Mapping[str, NDArray[np.int64]],
) -> list[Place]:
    """Return the rows from which at least half of the series that were further on go back."""
    candidates = {
        (row, step)
        for name, at in backs.items()
        for row, step in zip(rows[name][at].tolist(), series[name].steps[at].tolist(), strict=True)
    }
    return [place for place in sorted(candidates) if _is_resume(place, series, rows)]


def _is_resume(place: Place, series: Mapping[str, Series], rows: Mapping[str, IntArray]) -> bool:
    row, step = place
    further = back = 0
    for name, one in series.items():
        at = int(np.searchsorted(rows[name], row))
        if 0 < at < one.steps.size and one.steps[at - 1] >= step:
            further += 1
            back += bool(one.steps[at] <= one.steps[at - 1])
    return 2 * back >= further


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
