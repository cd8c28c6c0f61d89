"""The Monitor: attach to a model and its optimizers, record every layer at every step."""

import atexit
import math
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor import basic, curvature  # noqa: F401 (they register their signals)
from stabkit.monitor.attach import Attachment
from stabkit.monitor.background import Background
from stabkit.monitor.folder import hold, left_by, prepare
from stabkit.monitor.guard import Guard
from stabkit.monitor.intervals import Intervals
from stabkit.monitor.layers import by_layer, group_layers
from stabkit.monitor.measure import LayerMeasure
from stabkit.monitor.members import Members, listed, measurable
from stabkit.monitor.noise import gradient_noise
from stabkit.monitor.probe import Probe
from stabkit.monitor.probing import Probing
from stabkit.monitor.reactions import Action, Reactions
from stabkit.monitor.rows import RowReader
from stabkit.monitor.scalars import Scalars
from stabkit.monitor.signals import Asked, DerivedSignal, LayerSignal, ProbeSignal, choose
from stabkit.rundir import RunDir
from stabkit.store.writer import Writer


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
        asked = choose(signals)
        self.step = first_step or 0
        self.rundir = RunDir(Path(folder))
        self.layers, layer = group_layers([name for name, _ in named], layer_of)
        self.flush_every = flush_every
        self._pid = os.getpid()
        self._parameters = [p for _, p in named]
        self._guard = Guard(self.rundir.path, strict, lambda: self.step)
        failed = self._guard.signal_failed
        of_layers = [s for s in asked if isinstance(s, LayerSignal)]
        self._measure = LayerMeasure(
            self._parameters, layer, len(self.layers), of_layers, flush_every, failed
        )
        of_probe = [s for s in asked if isinstance(s, ProbeSignal)]
        self._probing = Probing(model, probe, of_probe, every, optimizers, layer_of, failed)
        self._noise = gradient_noise(asked, images_per_step, model)
        self._reactions = Reactions(
            self.rundir,
            model,
            optimizers,
            by_layer(self._parameters, layer, self.layers),
            lambda: self.step,
            strict,
        )
        self._hold = ExitStack()
        in_nonfinite, beta2 = False, None
        if _rank() == 0:
            with ExitStack() as stack:
                if not locked:
                    stack.enter_context(hold(self.rundir, self, first_step))
                self.step = prepare(self.rundir, first_step)
                in_nonfinite, beta2 = left_by(self.rundir, self.step)
                writer = Writer(self.rundir.path, run or self.rundir.path.name)
                self._guard.out = Background(self.rundir, writer, strict)
                self._hold = stack.pop_all()
        self._out = self._guard.out
        self._scalars = Scalars(beta2)
        derived = [s for s in asked if isinstance(s, DerivedSignal)]
        self._intervals = Intervals(
            self._measure,
            self._probing,
            self._scalars,
            RowReader(self.layers, derived, in_nonfinite),
            self._reactions,
            self._out,
            images_per_step,
        )
        self._measures = self._out is not None or self._measure.blocks.sharded
        self._is_open = False  # whether a row is begun: some optimizer is about to step, or has
        self._of_row: set[int] = set()  # optimizers whose gradients are in the row
        self._stepped: set[int] = set()
        self._members = Members(self._parameters, optimizers)
        self._closed = False
        self._attachment = Attachment(
            optimizers, scaler, self._gradients, self._before_step, self._after_step
        )
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
            with self._guard(f"log {name}"):
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
            with self._guard("reactions"):
                self._reactions.react(self._reactions.evaluated(step, metric, correct, chance))
        return accuracy

    def before_clipping(self, optimizer: Optimizer | None = None) -> None:
        """Call it where gradients are complete and not yet clipped: these are then recorded.

        Without it they are read when `optimizer.step()` begins. `optimizer`: whose, where several
        step at different times.
        """
        if not self._is_dead():
            self._attachment.gradients_ready(optimizer)

    def micro_batch(self) -> None:
        """For the level `noise`: call it after the backward pass of each micro-batch, before its
        gradients are reduced over processes."""
        if self._noise is not None and not self._is_dead():
            with self._guard("noise"):
                self._noise.micro_batch(self._parameters)

    def on(self, kind: str, action: Action) -> None:
        self._reactions.on(kind, action)

    on.__doc__ = Reactions.on.__doc__

    @property
    def should_stop(self) -> bool:
        """Whether an event came for which `on(kind, "stop")` was asked."""
        return self._reactions.should_stop

    def flush(self) -> None:
        """Everything of the steps done so far, on disk. Waits for the device."""
        if self._is_dead():
            return
        with self._guard("flush"):
            self._close_row()
            self._intervals.end(self.step)
            self._intervals.write_waiting()
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
            self._reactions.close()
            if self._out is not None:
                try:
                    self._out.close()
                finally:
                    self._hold.close()

    # --- a row: from the first optimizer's step to the last one's

    def _gradients(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if self._is_dead():
            return
        with self._guard("measure"):
            if self._is_open and id(optimizer) in self._of_row:
                self._close_row()
            if not self._is_open:
                self._open_row()
            self._of_row.add(id(optimizer))
            if self._measures:
                self._measure.gradients(self._members.of(optimizer), scale)

    def _before_step(self, optimizer: Optimizer) -> None:
        if self._is_dead() or not self._is_open:
            return
        with self._guard("measure"):
            if self._measures:
                self._measure.before(self._members.of(optimizer))

    def _after_step(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if self._is_dead() or not self._is_open:
            return
        with self._guard("measure"):
            if self._measures:
                self._measure.after(self._members.of(optimizer), optimizer, scale)
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._attachment.optimizers):
            self._close_row()

    def _open_row(self) -> None:
        if self._measure.rows >= self.flush_every:
            self._intervals.end(self.step)
            self._reactions.agree()
        self._measure.begin_row()
        self._is_open = True
        self._of_row.clear()
        self._stepped.clear()
        if self._out is not None:
            self._scalars.of_optimizers(self.step, self._attachment.optimizers)
            if (scale := self._attachment.grad_scale()) is not None:
                self._scalars.add(self.step, "grad_scale", scale)
        if self._noise is not None:
            for name, value in (self._noise.step(self._parameters) or {}).items():
                self._scalars.add(self.step, name, value)
        if self._measures and self._probing.is_due(self.step):
            self._probing.look(self.step)

    def _close_row(self) -> None:
        if self._is_open:
            self._is_open = False
            self.step += 1

    # --- never hurts

    def _is_dead(self) -> bool:
        """Closed, or a copy of the Monitor in a forked or another process."""
        return self._closed or os.getpid() != self._pid

    def _writes(self) -> bool:
        return not self._is_dead() and self._out is not None

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process records nothing: the folder has one writer."""
        return {"_closed": True, "rundir": self.rundir}

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
