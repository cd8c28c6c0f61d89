"""Find columns that go blank while the rows go on.

pandas writes NaN as a blank cell, JavaScript as null. So the loss of a run that diverged may end in
nothing, and nothing can be judged there.
"""

from collections.abc import Mapping

import numpy as np

from stabkit.convert.columns import Column
from stabkit.convert.series import BoolArray, IntArray

PERIODS = 3  # a column has ended if it lacks so many values at its usual distance
LAST = 20  # usual: the largest of the last so many distances, in rows


def blank_ends(
    columns: Mapping[str, Column], steps: IntArray, known: BoolArray
) -> dict[str, tuple[int, int]]:
    """Return the lowest and highest step of the rows after the end of each such column.

    `steps` and `known`, [rows]: those of the table, and which rows have one. A column has not gone
    blank if others take its place: if columns that begin after its end fill half of the rows.
    """
    number = np.cumsum(known) - 1  # of each row among those with a step
    count = int(known.sum())
    rows = {name: number[cells.rows[known[cells.rows]]] for name, cells in columns.items()}
    rows = {name: np.unique(own) for name, own in rows.items() if own.size > 1}
    found = {}
    for name, own in rows.items():
        last = int(own[-1])
        after = count - 1 - last
        if after < PERIODS * int(np.diff(own)[-LAST:].max()) or _replaced(rows, last, after):
            continue
        silent = steps[known][last + 1 :]
        found[name] = int(silent.min()), int(silent.max())
    return found


def _replaced(rows: Mapping[str, IntArray], last: int, after: int) -> bool:
    began = [own for own in rows.values() if own[0] > last]
    return bool(began) and 2 * np.unique(np.concatenate(began)).size >= after
