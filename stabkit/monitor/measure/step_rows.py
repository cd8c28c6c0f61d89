"""One row for every training step, made while the optimizers step.

A row begins with the gradients of the first optimizer that steps and ends with the step of the
last one. Everything here is called from the training loop, through the hooks of `Attachment`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer

from stabkit.monitor.attach import Attachment
from stabkit.monitor.guard import Guard
from stabkit.monitor.measure.flush import RowFlusher
from stabkit.monitor.measure.instruments import Instruments
from stabkit.monitor.measure.scalars import Scalars

LOGGED_TWICE = (
    "came twice for one step, and the last counts. Call log once after each optimizer.step(): what "
    "is logged before it, or while no optimizer of the Monitor steps, is taken to be of the step "
    "before"
)
NO_STEP = (
    "log was called {} times, and no step of {} was seen: no layer is recorded. Give the Monitor "
    "the optimizer whose step() the loop calls"
)


class StepRows:
    """Makes the rows from step `first` on; `step` is the number of updates made so far.

    - `writes`: whether this process writes rows. One that does not still measures a sharded model,
      because its shards are part of every row.
    - `is_dead`: whether the Monitor no longer records in this process.
    - `agree`: called at the same steps in every process, so that all react to the same events.
    - `opened_row`: called at the end of the opening of each row, before the weights change.
    - `closed_row`: called after each row.
    """

    def __init__(
        self,
        first: int,
        instruments: Instruments,
        scalars: Scalars,
        flusher: RowFlusher,
        attachment: Attachment,
        guard: Guard,
        *,
        flush_every: int,
        full_every: int,
        writes: bool,
        is_dead: Callable[[], bool],
        agree: Callable[[], None],
        opened_row: Callable[[], None],
        closed_row: Callable[[], None],
    ) -> None:
        self.step = first
        self.measure, self.probing, self.noise = (
            instruments.measure,
            instruments.probing,
            instruments.noise,
        )
        self.members, self.scalars, self.flusher = instruments.members, scalars, flusher
        self._attachment, self._guard = attachment, guard
        self._first, self._flush_every, self._full_every = first, flush_every, full_every
        self._writes = writes
        self._measures = writes or instruments.measure.blocks.sharded
        self._is_dead, self._agree = is_dead, agree
        self._opened_row, self._closed_row = opened_row, closed_row
        self._is_open = False  # true from the first optimizer's gradients to the last one's step
        self._is_opening = False  # reactions run then, and may call for a flush
        self._stepped: set[int] = set()  # ids of the optimizers that stepped in the open row
        self._optimizer_steps = 0
        self._logs_without_step = 0
        self._logged: dict[str, tuple[int, int]] = {}  # name -> step, optimizer steps until then

    def log(self, **values: Tensor | float) -> None:
        """Keep scalars for the open row, or else for the last one."""
        step = self.step if self._is_open else max(self.step - 1, self._first)
        for name, value in values.items():
            with self._guard(f"log {name}"):
                self.scalars.log(step, name, value)
            # A name may come again only after an optimizer stepped. Before the first step (0) a
            # value is allowed to come twice for step 0, so that is a repetition as well.
            before, self._logged[name] = self._logged.get(name), (step, self._optimizer_steps)
            if before in ((step, self._optimizer_steps), (step, 0)):
                self._guard.noticed("log", f"log: {name} {LOGGED_TWICE}")
        if not self._optimizer_steps:
            self._logs_without_step += 1
            if self._logs_without_step == self._flush_every:
                self.report_no_step()

    def report_no_step(self) -> None:
        """Report a training that logs while none of the optimizers steps, if it is one."""
        if self._logs_without_step and not self._optimizer_steps:
            names = ", ".join(type(one).__name__ for one in self._attachment.optimizers)
            self._guard.failed("steps", NO_STEP.format(self._logs_without_step, names))

    def gradients(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Measure the gradients of one optimizer, which is about to step."""
        if self._is_dead():
            return
        if self._is_open and id(optimizer) in self._stepped:
            self.close_row()  # the others were left out of the row
        if not self._is_open:
            self._open_row()
        if self._measures:
            with self._measuring():
                self.measure.gradients(self.members.of(optimizer), scale)

    def before_step(self, optimizer: Optimizer) -> None:
        """Measure the parameters before the update."""
        if self._is_open and self._measures and not self._is_dead():
            with self._measuring():
                self.measure.before(self.members.of(optimizer))

    def after_step(self, optimizer: Optimizer, scale: Tensor | None, late: bool) -> None:
        """Measure the update and the moments; end the row if this was the last optimizer."""
        if self._is_dead() or not self._is_open:
            return
        if self._measures:
            with self._measuring():
                self.measure.after(self.members.of(optimizer), optimizer, scale, late)
            for kind, why in self.measure.adam.unlike.items():
                self._guard.noticed(
                    f"adam_rms {kind}",
                    f"adam_rms and stale_moments are of Adam's second moment, and {kind}'s need "
                    f"not be that: {why}. They are null for its parameters",
                )
        self._optimizer_steps += 1
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._attachment.optimizers):
            self.close_row()

    def other_step(self, optimizer: Optimizer) -> None:
        """Report an optimizer that steps recorded parameters and is not the Monitor's."""
        if self._is_dead():
            return
        with self._guard("members"):
            if shared := self.members.shared_with(optimizer):
                kind = type(optimizer).__name__
                self._guard.noticed(
                    f"optimizer {kind}",
                    f"{kind} steps {shared} of the recorded parameters and is no optimizer of the "
                    "Monitor: its steps are not recorded. To record them close this Monitor and "
                    "make another, with first_step",
                )

    def close_row(self) -> None:
        """End the open row, if there is one that has values."""
        if self._is_open and not self._is_opening:
            self._is_open = False
            self.step += 1
            self._closed_row()

    def flush(self) -> None:
        """Hand every row so far to the writer."""
        with self._guard("flush"):
            self.close_row()
            self.flusher.flush(self.step)
            self.flusher.write_pending()

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Void the row if measuring raises: half a row would be read as a whole one."""
        with self._guard("measure"):
            try:
                yield
            except BaseException:
                self.measure.void_row()
                raise

    def _open_row(self) -> None:
        """Begin a row. Each part is guarded by itself, so that whatever fails, the step counts."""
        self._is_open = self._is_opening = True
        self._stepped.clear()
        with self._guard("members"):
            for reason in self.members.changes():
                self._guard.noticed(reason, reason)
            self.measure.stale = self.members.stale()
        try:
            if self.measure.rows >= self._flush_every:
                with self._guard("interval"):
                    self.flusher.flush(self.step)
            # Steps decide when processes agree, not rows: one process alone may have flushed.
            done = self.step - self._first
            if done and done % self._flush_every == 0:
                with self._guard("reactions"):
                    self._agree()
        finally:
            self._is_opening = False
            # by the number of the step: a resumed run measures what the unbroken one does
            self.measure.begin_row(self.step % self._full_every == 0)
        if self._writes:
            with self._guard("optimizers"):
                self.scalars.of_optimizers(self.step, self._attachment.optimizers)
                if (scale := self._attachment.grad_scale()) is not None:
                    self.scalars.add(self.step, "grad_scale", scale)
        for name, value in self.noise.step(self.members.parameters).items():
            self.scalars.add(self.step, name, value)
        if self._measures and self.probing.is_due(self.step):
            self.probing.look(self.step)
        self._opened_row()
