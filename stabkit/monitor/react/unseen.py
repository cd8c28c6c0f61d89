"""Leaves out the rows that were looked at before, as after a training went back."""

import numpy as np

from stabkit.detect.robust import BoolArray, IntArray
from stabkit.monitor.measure.rows import Rows


class Unseen:
    """Remembers up to which step the layers, and every scalar, were seen."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def of(self, rows: Rows) -> Rows:
        """Return the rows of new steps; a step that a GradScaler skipped counts as not measured."""
        known = dict(rows.measured)
        if rows.skipped is not None:
            known = {name: measured & ~rows.skipped[:, None] for name, measured in known.items()}
        new = self._is_new("", rows.steps)
        fresh = {name: self._is_new(name, at) for name, (at, _) in rows.scalars.items()}
        return Rows(
            rows.steps[new],
            rows.layers,
            {name: table[new] for name, table in rows.values.items()},
            {name: table[new] for name, table in known.items()},
            {name: (at[fresh[name]], v[fresh[name]]) for name, (at, v) in rows.scalars.items()},
            [one for one in rows.nonfinite if one.seen_at in rows.steps[new]],
        )

    def _is_new(self, name: str, steps: IntArray) -> BoolArray:
        seen = np.maximum.accumulate([self._last.get(name, -1), *steps.tolist()])
        self._last[name] = int(seen[-1])
        return np.asarray(steps > seen[:-1], dtype=bool)
