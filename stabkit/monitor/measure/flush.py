"""From the device to the disk: rows go to the host an interval at a time, and are written at the
end of the next one, when their copy has long finished."""

import time

from stabkit.monitor.measure.layer_measure import LayerMeasure
from stabkit.monitor.measure.probing import Probing
from stabkit.monitor.measure.rows import RowReader, Waiting
from stabkit.monitor.measure.scalars import Scalars
from stabkit.monitor.react.reactions import Reactions
from stabkit.store.background import Background


class Intervals:
    """`out`: None on every process but the first, which alone has rows to write."""

    def __init__(
        self,
        measure: LayerMeasure,
        probing: Probing,
        scalars: Scalars,
        reader: RowReader,
        reactions: Reactions,
        out: Background | None,
        images_per_step: int | None,
    ) -> None:
        self.measure, self.probing, self.scalars = measure, probing, scalars
        self.reader, self.reactions, self.out = reader, reactions, out
        self.images_per_step = images_per_step
        self._waiting: Waiting | None = None
        self._began = time.monotonic()

    def end(self, step: int) -> None:
        """Of the rows before `step`."""
        try:
            self.write_waiting()
        finally:
            self._take(step)

    def _take(self, step: int) -> None:
        rows = self.measure.rows
        if not rows and not self.scalars:
            return
        if self.images_per_step is not None and rows:
            seconds = max(time.monotonic() - self._began, 1e-9)
            self.scalars.add(step - 1, "images_per_s", self.images_per_step * rows / seconds)
        self._began = time.monotonic()
        taken = self.measure.take()  # on every process: a sharded model's rows are added up
        if self.out is not None:
            looks, series = self.probing.take(), self.scalars.take()
            self._waiting = Waiting(step - rows, taken, looks, series)

    def write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or self.out is None:
            return
        rows = self.reader.read(waiting, self.measure)
        for step, layers in rows.nonfinite:
            self.out.event("nonfinite", step, layers=layers)
        self.out.add(rows.add_to)
        if self.reactions.asked:
            known = {name: m & ~rows.skipped[:, None] for name, m in rows.measured.items()}
            found = self.reactions.steps(rows.steps, rows.layers, rows.values, rows.scalars, known)
            self.reactions.react(found)
