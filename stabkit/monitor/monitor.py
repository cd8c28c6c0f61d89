"""The Monitor: attach to a model and its optimizers, record every layer at every step."""

import atexit
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.attach import Attachment
from stabkit.monitor.folder import open_folder
from stabkit.monitor.guard import Guard
from stabkit.monitor.layers import by_layer, group_layers
from stabkit.monitor.measure.flush import Intervals
from stabkit.monitor.measure.layer_measure import LayerMeasure
from stabkit.monitor.measure.probing import Probing
from stabkit.monitor.measure.rows import RowReader
from stabkit.monitor.measure.scalars import Scalars
from stabkit.monitor.members import Members, check_same_model, listed, measurable
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.ranks import rank
from stabkit.monitor.react.reactions import Action, Reactions
from stabkit.monitor.signals import attention, basic, curvature, distances, features  # noqa: F401
from stabkit.monitor.signals.noise import NoiseSignals
from stabkit.monitor.signals.signal import Asked, DerivedSignal, LayerSignal, ProbeSignal, choose
from stabkit.rundir import RunDir, State, Status

TELL_EVERY_S = 10.0
LOGGED_TWICE = (
    "came twice for one step, and the last counts. Call log once after each optimizer.step(): what "
    "is logged before it, or while no optimizer of the Monitor steps, is taken to be of the step "
    "before"
)


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
        check_same_model(model, optimizers)
        asked = choose(signals, probe)
        if flush_every < 1:
            raise ValueError(f"Monitor: flush_every must be 1 step or more, got {flush_every}")
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
        self._noise = NoiseSignals(asked, images_per_step, model, failed)
        # hooks do nothing yet, and a folder is not touched before all that can be refused was
        self._attachment = Attachment(
            optimizers,
            scaler,
            self._gradients,
            self._before_step,
            self._after_step,
            self._other_step,
        )
        in_nonfinite, beta2 = False, None
        if rank() == 0:
            try:
                opened = open_folder(self.rundir, self, first_step, run, strict, locked)
            except BaseException:
                self._attachment.remove()
                raise
            self.step, in_nonfinite, beta2, self._guard.out = opened
        self._first = self.step
        self._out = self._guard.out
        self._scalars = Scalars(beta2)
        self._reactions = Reactions(
            self.rundir,
            model,
            optimizers,
            by_layer(self._parameters, layer, self.layers),
            lambda: self.step,
            self._out,
            strict,
        )
        derived = [s for s in asked if isinstance(s, DerivedSignal)]
        self._intervals = Intervals(
            self._measure,
            self._probing,
            self._scalars,
            RowReader(self.layers, derived, in_nonfinite, failed),
            self._reactions,
            self._out,
            images_per_step,
        )
        self._measures = self._out is not None or self._measure.blocks.sharded
        self._is_open = False  # whether a row is begun: some optimizer is about to step, or has
        self._stepped: set[int] = set()
        self._members = Members(model, named, optimizers, layer_of)
        self._optimizer_steps = 0
        self._logged: dict[str, tuple[int, int]] = {}  # of each name its step, and these then
        self._knn: float | None = None
        self._tells = not locked  # else the caller writes the status
        self._told = -math.inf
        self._tell("running")
        self._closed = False
        self._at_exit = partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close("failed" if kind else "done", f"{kind.__name__}: {error}" if kind else None)

    # --- what a loop calls

    def log(self, **values: Tensor | float) -> None:
        """Scalars of the step whose `optimizer.step()` ran last. Tensors are not waited for.

        Before any, of the first. Of several calls in a step the last counts; a name that comes
        twice is said once, as a value logged before its step would replace that of the one before.
        """
        if not self._writes():
            return
        step = self.step if self._is_open else max(self.step - 1, self._first)
        for name, value in values.items():
            with self._guard(f"log {name}"):
                self._scalars.log(step, name, value)
            # again for the step, and no other optimizer of it stepped between; before all steps, 0
            before, self._logged[name] = self._logged.get(name), (step, self._optimizer_steps)
            if before in ((step, self._optimizer_steps), (step, 0)):
                self._guard.noticed("log", f"log: {name} {LOGGED_TWICE}")

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

        `predicted`, `labels`: classes of one shape, always of the same samples in the same order.
        Waits for the device. `k`, `temperature`: of kNN. The analysis seeks dips in the metric
        `knn_heldout`. Raises ValueError for shapes that differ.
        """
        correct = _correct(predicted, labels)
        accuracy = float(correct.mean())
        if self._writes() and self._out is not None:
            self._knn = accuracy if metric == "knn_heldout" else self._knn
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
        if not self._is_dead():
            self._noise.micro_batch(self._members.parameters)

    def on(self, kind: str, action: Action) -> None:
        if not self._is_dead():
            self._reactions.on(kind, action)

    on.__doc__ = Reactions.on.__doc__

    @property
    def should_stop(self) -> bool:
        """Whether an event came for which `on(kind, "stop")` was asked."""
        reactions = self.__dict__.get("_reactions")  # which a copy has not
        return reactions is not None and bool(reactions.should_stop)

    def flush(self) -> None:
        """Everything of the steps done so far, on disk. Waits for the device, and for the disk as
        long as it takes anything. Of a sharded model (FSDP2) every process must call it."""
        if self._is_dead():
            return
        self._end_rows()
        if self._out is not None:
            self._out.wait()

    def close(self) -> None:
        """Flush, and let go of the optimizers and the folder."""
        self._close("done")

    def _end_rows(self) -> None:
        with self._guard("flush"):
            self._close_row()
            self._intervals.end(self.step)
            self._intervals.write_waiting()

    def _close(self, state: State, reason: str | None = None) -> None:
        if self._is_dead():
            return
        self._attachment.remove()
        atexit.unregister(self._at_exit)
        # of a sharded model others may be anywhere else: what they had to add up is given up
        alone = self._measure.blocks.sharded and reason is not None
        try:
            if alone:
                with self._guard("flush"):
                    self._intervals.write_waiting()
            else:
                self.flush()
            self._tell(state, reason)
        finally:
            self._closed = True
            try:
                self._reactions.close()
            finally:
                if self._out is not None:
                    self._out.close()

    # --- a row: from the first optimizer's step to the last one's

    def _gradients(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if self._is_dead():
            return
        if self._is_open and id(optimizer) in self._stepped:
            self._close_row()
        if not self._is_open:
            self._open_row()
        if self._measures:
            with self._measuring():
                self._measure.gradients(self._members.of(optimizer), scale)

    def _before_step(self, optimizer: Optimizer) -> None:
        if self._is_open and self._measures and not self._is_dead():
            with self._measuring():
                self._measure.before(self._members.of(optimizer))

    def _after_step(self, optimizer: Optimizer, scale: Tensor | None, late: bool) -> None:
        if self._is_dead() or not self._is_open:
            return
        if self._measures:
            with self._measuring():
                self._measure.after(self._members.of(optimizer), optimizer, scale, late)
        self._optimizer_steps += 1
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._attachment.optimizers):
            self._close_row()

    def _other_step(self, optimizer: Optimizer) -> None:
        if self._is_dead():
            return
        with self._guard("members"):
            if shared := self._members.shared_with(optimizer):
                kind = type(optimizer).__name__
                self._guard.noticed(
                    f"optimizer {kind}",
                    f"{kind} steps {shared} of the recorded parameters and is no optimizer of the "
                    "Monitor: its steps are not recorded. To record them close this Monitor and "
                    "make another, with first_step",
                )

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with self._guard("measure"):
            try:
                yield
            except BaseException:
                self._measure.void_row()
                raise

    def _open_row(self) -> None:
        """Each part for itself: whatever fails, the step is counted."""
        self._is_open = True
        self._stepped.clear()
        with self._guard("members"):
            for reason in self._members.changes():
                self._guard.noticed(reason, reason)
            self._measure.stale = self._members.stale()
        try:
            if self._measure.rows >= self.flush_every:
                with self._guard("interval"):
                    self._intervals.end(self.step)
            done = self.step - self._first  # not the rows: one process alone may have flushed
            if done and done % self.flush_every == 0:
                with self._guard("reactions"):
                    self._reactions.agree()
        finally:
            self._measure.begin_row()
        if self._out is not None:
            with self._guard("optimizers"):
                self._scalars.of_optimizers(self.step, self._attachment.optimizers)
                if (scale := self._attachment.grad_scale()) is not None:
                    self._scalars.add(self.step, "grad_scale", scale)
        for name, value in self._noise.step(self._members.parameters).items():
            self._scalars.add(self.step, name, value)
        if self._measures and self._probing.is_due(self.step):
            self._probing.look(self.step)

    def _close_row(self) -> None:
        if self._is_open:
            self._is_open = False
            self.step += 1
            if time.monotonic() - self._told > TELL_EVERY_S:
                self._tell("running")

    def _tell(self, state: State, reason: str | None = None) -> None:
        """What `stabkit status` shows."""
        self._told = time.monotonic()
        if self._tells and self._out is not None:
            marks = dict(self._reactions.marks)
            self._out.status(Status(state, self.step, knn=self._knn, reason=reason, events=marks))

    # --- never hurts

    def _is_dead(self) -> bool:
        """Closed, or a copy of the Monitor in a forked or another process."""
        return self._closed or os.getpid() != self._pid

    def _writes(self) -> bool:
        return not self._is_dead() and self._out is not None

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process records nothing: the folder has one writer."""
        facts = ("rundir", "layers", "step", "flush_every")
        return {name: self.__dict__[name] for name in facts} | {"_closed": True}

    def __del__(self) -> None:
        """Of a Monitor that nobody closed and nobody has any more. Nothing is waited for, as this
        may run anywhere; the rows of a sharded model, which all processes add up, are lost."""
        with suppress(Exception):
            if not self._is_dead():
                self._attachment.remove()
                atexit.unregister(self._at_exit)
                if self._out is not None and not self._measure.blocks.sharded:
                    self._end_rows()
                    self._tell("done", "its Monitor was not closed")
                self._closed = True
                if self._out is not None:
                    self._out.leave()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state


def _correct(predicted: Any, labels: Any) -> NDArray[np.bool_]:
    """[n] bits. Takes what holds classes: tensors, arrays, lists."""
    predicted, labels = torch.as_tensor(predicted), torch.as_tensor(labels)
    if predicted.shape != labels.shape or not predicted.numel():
        raise ValueError(
            f"log_eval: predicted {list(predicted.shape)} and labels {list(labels.shape)} must be "
            "the classes of the same samples, one or more"
        )
    bits: NDArray[np.bool_] = (predicted == labels.to(predicted.device)).flatten().cpu().numpy()
    return bits


def _close(monitor: "weakref.ref[Monitor]") -> None:
    """At the end of the interpreter, of a Monitor that nobody closed."""
    found = monitor()
    if found is not None:
        found._close("done", "the process ended without closing its Monitor")
