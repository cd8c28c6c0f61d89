"""From the device to the disk: rows go to the host an interval at a time.

They are written at the end of the next interval, when their copy has long finished, so that the
host never waits for the device.
"""

import time
from collections.abc import Callable

from stabkit.monitor.measure.layer_measure import LayerMeasure
from stabkit.monitor.measure.probing import Probing
from stabkit.monitor.measure.rows import PendingRows, RowReader, Rows
from stabkit.monitor.measure.scalars import Scalars
from stabkit.store.background import Background

LEFT_OUT = (
    "the gradient of these parameters is nothing but rounding (the loss does not depend on them); "
    "they are left out of param_norm, update_norm, update_ratio and adam_rms"
)


class RowFlusher:
    """Takes the rows off the device, reads them an interval later and gives them to the writer.

    `react` sees them too, after they are on their way to the disk. `out` is None in every process
    but the first, which alone has rows to write.
    """

    def __init__(
        self,
        measure: LayerMeasure,
        probing: Probing,
        scalars: Scalars,
        reader: RowReader,
        react: Callable[[Rows], None],
        out: Background | None,
        samples_per_step: int | None,
    ) -> None:
        self.measure, self.probing, self.scalars = measure, probing, scalars
        self.reader, self._react, self.out = reader, react, out
        self._samples_per_step = samples_per_step
        self._pending: PendingRows | None = None
        self._began = time.monotonic()

    def flush(self, step: int) -> None:
        """Write the pending rows, and begin to copy all rows before `step` to the host."""
        try:
            self.write_pending()
        finally:
            self._take(step)

    def _take(self, step: int) -> None:
        rows = self.measure.rows
        if not rows and not self.scalars:
            return
        if self._samples_per_step is not None and rows:
            seconds = max(time.monotonic() - self._began, 1e-9)
            self.scalars.add(step - 1, "images_per_s", self._samples_per_step * rows / seconds)
        self._began = time.monotonic()
        totals = self.measure.take()  # in every process: a sharded model's rows are added up
        if self.out is not None:
            looks, series = self.probing.take(), self.scalars.take()
            self._pending = PendingRows(step - rows, totals, looks, series)

    def write_pending(self) -> None:
        """Read the rows that were copied, and hand them to the writer and to the reactions."""
        pending, self._pending = self._pending, None
        if pending is None or self.out is None:
            return
        rows = self.reader.read(pending, self.measure)
        for begun in rows.nonfinite:
            self.out.event("nonfinite", begun.step, **begun.facts())
        if rows.null:
            reason = f"{LEFT_OUT}: {', '.join(rows.null)}"
            self.out.event("null_parameters", int(rows.steps[-1]), reason=reason)
        self.out.add(rows.add_to)
        self._react(rows)
