"""The Monitor: attach to a model and its optimizers, record every layer at every step."""

import atexit
import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor import basic  # noqa: F401 (registers its signals)
from stabkit.monitor.attach import Attachment
from stabkit.monitor.background import Background
from stabkit.monitor.folder import hold, left_by, prepare
from stabkit.monitor.layers import group_layers
from stabkit.monitor.measure import LayerMeasure
from stabkit.monitor.members import Members, listed, measurable
from stabkit.monitor.probe import Probe
from stabkit.monitor.probing import Probing
from stabkit.monitor.rows import RowReader, Waiting
from stabkit.monitor.scalars import Scalars
from stabkit.monitor.signals import Asked, DerivedSignal, LayerSignal, ProbeSignal, choose
from stabkit.rundir import RunDir
from stabkit.store.writer import Writer

log = logging.getLogger("stabkit")


class Monitor:
    """Records gradients, parameters, updates and more of every layer at every optimizer step.

        with stabkit.Monitor(model, optimizer, "runs/mine") as monitor:
            for images in loader:
                loss = train_step(images)       # ends with optimizer.step()
                monitor.log(loss=loss)

    Gradients are read when `optimizer.step()` begins: accumulated, reduced, not yet applied.
    Nothing is drawn from a random generator, no parameter is touched and the host never waits for
    the device within an interval, so training is bit for bit what it is without the monitor. An
    error while measuring or writing never stops the training: it is said once and left in the event
    log, and what failed is null from then on.

    Arguments:
    - `optimizer`: one, or a list of those that step one after the other in an iteration.
    - `folder`: the run's folder.
    - `signals`: levels, names (`stabkit signals` lists them) or objects; see docs/monitor.md.
    - `probe`, `every`: what probe signals look at, and how many steps apart.
    - `scaler`: the GradScaler that steps the optimizers, for steps that it skips.
    - `layer_of`: the layer of a parameter's name, instead of the module path's; None leaves the
      parameter out.
    - `first_step`: the step the next `optimizer.step()` is; pass it when a training resumes. Rows
      from there on that the folder already holds are removed. Without it, such a folder is refused.
    - `flush_every`: steps an interval; values reach the disk at the end of the one after.
    - `images_per_step`: when given, `images_per_s` is recorded once an interval.
    - `strict`: raise what cannot be written or measured, for a loop that saves checkpoints that
      claim the rows before them.
    - `locked`: the caller holds the folder's lock.

    Where several processes train together each makes a Monitor, and the first one writes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        folder: str | Path,
        *,
        signals: Asked | Sequence[Asked] = "basic",
        probe: Probe | None = None,
        every: int = 50,
        scaler: "torch.amp.GradScaler | None" = None,
        layer_of: Callable[[str], str | None] | None = None,
        first_step: int | None = None,
        flush_every: int = 50,
        images_per_step: int | None = None,
        run: str | None = None,
        strict: bool = False,
        locked: bool = False,
    ) -> None:
        self._closed = True  # until all is well
        optimizers = listed(optimizer)
        named = measurable(model, layer_of)
        self.layers, layer = group_layers([name for name, _ in named], layer_of)  # type: ignore[arg-type]
        self.rundir = RunDir(Path(folder))
        self.flush_every, self.images_per_step, self.strict = flush_every, images_per_step, strict
        asked = choose(signals)
        self._parameters = [p for _, p in named]
        self._measure = LayerMeasure(
            self._parameters,
            layer,
            len(self.layers),
            [s for s in asked if isinstance(s, LayerSignal)],
            flush_every,
            self._signal_failed,
        )
        self._probing = Probing(
            model,
            probe,
            [s for s in asked if isinstance(s, ProbeSignal)],
            every,
            optimizers,
            layer_of,
            self._signal_failed,
        )
        self._pid = os.getpid()
        self._is_first = _rank() == 0
        self._measures = self._is_first or self._measure.blocks.sharded
        self.step = first_step or 0
        self._hold = ExitStack()
        self._out: Background | None = None
        if self._is_first:
            if not locked:
                self._hold.enter_context(hold(self.rundir, self, first_step))
            try:
                self.step = prepare(self.rundir, first_step)
                writer = Writer(self.rundir.path, run or self.rundir.path.name)
            except BaseException:
                self._hold.close()
                raise
            self._out = Background(self.rundir, writer, strict)
        in_nonfinite, beta2 = left_by(self.rundir, self.step) if self._is_first else (False, None)
        self._scalars = Scalars(beta2)
        self._reader = RowReader(
            self.layers,
            [s for s in asked if isinstance(s, DerivedSignal)],
            in_nonfinite,
        )
        self._waiting: Waiting | None = None
        self._is_open = False  # whether a row is begun: some optimizer is about to step, or has
        self._stepped: set[int] = set()
        self._members = Members(self._parameters, optimizers)
        self._interval_began = time.monotonic()
        self._said: set[str] = set()
        self._closed = False
        self._attachment = Attachment(optimizers, scaler, self._before_step, self._after_step)
        atexit.register(_close, weakref.ref(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what a loop calls

    def log(self, **values: Tensor | float) -> None:
        """Scalars of the step whose `optimizer.step()` ran last. Tensors are not waited for.

        Of several calls in a step the last counts.
        """
        if not self._writes():
            return
        step = self.step if self._is_open else max(self.step - 1, 0)
        for name, value in values.items():
            with self._guarded(f"log {name}"):
                self._scalars.log(step, name, value)

    def log_eval(
        self,
        step: int,
        metric: str,
        predicted: Tensor,
        labels: Tensor,
        k: int = 0,
        temperature: float = math.nan,
        num_classes: int | None = None,
    ) -> float:
        """Record an evaluation of the weights after `step` updates; returns its accuracy.

        `predicted`, `labels`: [n] classes, always of the same samples in the same order. Waits for
        the device. `k`, `temperature`: of kNN.
        """
        correct = (predicted == labels).cpu().numpy()
        accuracy = float(correct.mean())
        if self._writes() and self._out is not None:
            chance = 1 / num_classes if num_classes else math.nan
            self._out.add(
                lambda w: w.add_eval(step, metric, accuracy, chance, k, temperature, correct)
            )
        return accuracy

    def before_clipping(self) -> None:
        """Call it where gradients are complete and not yet clipped: these are then recorded.

        Without it they are read when `optimizer.step()` begins.
        """
        if not self._is_dead():
            self._attachment.gradients_ready()

    def flush(self) -> None:
        """Everything of the steps done so far, on disk. Waits for the device."""
        if self._is_dead():
            return
        with self._guarded("flush"):
            self._close_row()
            self._end_interval()
            self._write_waiting()
        if self._out is not None:
            self._out.wait()

    def close(self) -> None:
        """Flush, and let go of the optimizers and the folder."""
        if self._is_dead():
            return
        self._attachment.remove()
        try:
            self.flush()
        finally:
            self._closed = True
            if self._out is not None:
                try:
                    self._out.close()
                finally:
                    self._hold.close()

    # --- a row: from the first optimizer's step to the last one's

    def _before_step(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if self._is_dead():
            return
        with self._guarded("measure"):
            if self._is_open and id(optimizer) in self._stepped:
                self._close_row()
            if not self._is_open:
                self._open_row()
            if self._measures:
                members = self._members.of(optimizer)
                self._measure.gradients(members, scale)
                self._measure.before(members)

    def _after_step(self, optimizer: Optimizer) -> None:
        if self._is_dead() or not self._is_open:
            return
        with self._guarded("measure"):
            if self._measures:
                self._measure.after(self._members.of(optimizer), optimizer)
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._attachment.optimizers):
            self._close_row()

    def _open_row(self) -> None:
        if self._measure.rows >= self.flush_every:
            self._end_interval()
        self._measure.begin_row()
        self._is_open = True
        self._stepped.clear()
        if self._is_first:
            self._scalars.of_optimizers(self.step, self._attachment.optimizers)
            if (scale := self._attachment.grad_scale()) is not None:
                self._scalars.add(self.step, "grad_scale", scale)
        if self._measures and self._probing.is_due(self.step):
            self._probing.look(self.step)

    def _close_row(self) -> None:
        if self._is_open:
            self._is_open = False
            self.step += 1

    # --- an interval: rows that go to the host together, and to the disk an interval later

    def _end_interval(self) -> None:
        self._write_waiting()
        rows = self._measure.rows
        if not rows and not self._scalars:
            return
        if self.images_per_step is not None and rows:
            seconds = time.monotonic() - self._interval_began
            self._scalars.add(self.step - 1, "images_per_s", self.images_per_step * rows / seconds)
        self._interval_began = time.monotonic()
        first = self.step - rows
        taken = self._measure.take()
        if self._is_first:
            self._waiting = Waiting(first, taken, self._probing.take(), self._scalars.take())

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or self._out is None:
            return
        read = self._reader.read(waiting, self._measure)
        self._out.add(read.add_to)
        for step, layers in read.nonfinite:
            self._out.event("nonfinite", step, layers=layers)

    # --- never hurts

    def _is_dead(self) -> bool:
        """Closed, or a copy of the Monitor in a forked or another process."""
        return self._closed or os.getpid() != self._pid

    def _writes(self) -> bool:
        return self._is_first and not self._is_dead()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """An error of the Monitor's own never reaches the loop, unless it is strict."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._failed("monitor_failed", what, error)

    def _signal_failed(self, name: str, error: Exception) -> None:
        self._failed("signal_failed", name, error)

    def _failed(self, kind: str, what: str, error: Exception) -> None:
        if what in self._said:
            return
        self._said.add(what)
        reason = f"{type(error).__name__}: {error}"
        log.warning("stabkit: %s: %s failed (%s); training goes on", self.rundir.path, what, reason)
        if self._out is not None:
            self._out.event(kind, self.step, name=what, reason=reason)

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process records nothing: the folder has one writer."""
        return {"_closed": True, "_pid": -1, "_is_first": False, "rundir": self.rundir}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state


def _rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0


def _close(monitor: "weakref.ref[Monitor]") -> None:
    """At the end of the interpreter, of a Monitor that nobody closed."""
    found = monitor()
    if found is not None:
        found.close()
