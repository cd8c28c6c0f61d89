"""The Monitor: attach to a model and its optimizers, record every layer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.ending import end_by, error_in_hand
from stabkit.monitor.knn.knn import KNN
from stabkit.monitor.measure.evals import (
    Evaluation,
    checked_count,
    checked_share,
    checked_step,
    correct_bits,
    of_bits,
)
from stabkit.monitor.measure.options import Options
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.react.actions import Action
from stabkit.monitor.react.reactions import Reactions
from stabkit.monitor.recording import Recording
from stabkit.monitor.signals import attention, basic, curvature, distances, features  # noqa: F401
from stabkit.monitor.signals.signal import Asked
from stabkit.monitor.wrappers import checked, listed, scaler_within
from stabkit.printing import counted
from stabkit.rundir import RunDir


class Monitor:
    """Records gradients, parameters, updates and more of every layer.

        with stabkit.Monitor(model, optimizer, "runs/mine") as monitor:
            for images in loader:
                loss = train_step(images)       # ends with optimizer.step()
                monitor.log(loss=loss)

    Gradients are read when `optimizer.step()` begins: accumulated, reduced, not yet applied.
    Nothing is drawn from a random generator, no parameter is touched and the host never waits for
    the device within an interval, so training is bit for bit what it is without the monitor. An
    error while measuring or writing never stops the training: it is reported once and left in the
    event log, and what failed is null from then on.

    Arguments:
    - `optimizer`: one, or a list of those that step one after the other in an iteration.
    - `folder`: the run's folder.
    - `signals`: levels, names (`stabkit signals` lists them) or objects; see docs/monitor.md.
    - `probe`, `probe_every`: what probe signals look at, and how many steps apart.
    - `scaler`: the GradScaler that steps the optimizers, for steps that it skips.
    - `layer_of`: a function from a parameter's name to its layer, instead of the module path; a
      parameter for which it returns None is left out.
    - `first_step`: the number of the next step; pass it when a training resumes. Rows from there
      on that the folder already holds are removed, but for evaluations of the step itself, which
      were made before the checkpoint. Without it, such a folder is refused.
    - `full_every`: steps from one full step to the next. At steps that are multiples of it all
      signals are measured, at the others `grad_norm`, `nonfinite_count` and signals of your own;
      the rest is null there. 1 measures all at every step, and costs more.
    - `flush_every`: steps in an interval; values reach the disk at the end of the next interval.
    - `samples_per_step`: when given, `images_per_s` is recorded once an interval.
    - `knn`: a `stabkit.KNN`, evaluated every few steps.
    - `teacher`: the EMA copy of the model or of a part of it, compared every `probe_every` steps.
    - `strict`: raise errors of measuring and writing, for a loop whose checkpoints rely on the
      rows before them.
    - `config`: the settings of the training, a dictionary, a dataclass or an argparse.Namespace.
      Runs are compared by the settings in which they differ.

    Where several processes train together each makes a Monitor, and the first one writes.
    """

    _last_step = 0  # `step` of a copy

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        folder: str | Path,
        *,
        signals: Asked | Sequence[Asked] = "basic",
        probe: Probe | None = None,
        probe_every: int = 50,
        scaler: "torch.amp.GradScaler | None" = None,
        layer_of: Callable[[str], str | None] | None = None,
        first_step: int | None = None,
        flush_every: int = 50,
        full_every: int = 10,
        samples_per_step: int | None = None,
        knn: KNN | None = None,
        teacher: nn.Module | None = None,
        strict: bool = False,
        config: Any = None,
        _run_id: str | None = None,
    ) -> None:
        """`_run_id`: given by stabkit's own loop, which holds the folder and writes its status."""
        self._recording: Recording | None = None  # a copy in another process has none
        scaler = checked(scaler) if scaler is not None else scaler_within(optimizer)
        path = Path(folder).absolute()  # the training may change its working directory
        options = Options(
            signals=signals, probe=probe, probe_every=probe_every, scaler=scaler, layer_of=layer_of,
            first_step=first_step, flush_every=flush_every, full_every=full_every,
            samples_per_step=samples_per_step, knn=knn, teacher=teacher, strict=strict,
            config=config, run_id=_run_id,
        )  # fmt: skip
        recording = Recording(model, listed(optimizer), path, options)
        self.rundir: RunDir = recording.rundir
        self.layers: list[str] = recording.layers
        self.flush_every = flush_every
        self._recording = recording

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._recording is not None:
            self._recording.close(end_by(error))

    @property
    def step(self) -> int:
        """Updates made so far, which is the number of the next step."""
        return self._recording.step if self._recording is not None else self._last_step

    @property
    def _live(self) -> Recording | None:
        """The recording; None once it is closed, and in a copy or a forked process."""
        recording = self._recording
        return None if recording is None or recording.is_dead() else recording

    def log(self, *unnamed: Never, **values: Tensor | float) -> None:
        """Record scalars of the step whose `optimizer.step()` ran last; wait for no tensor.

        A call before the first step logs for step 0. The last call in a step wins. A name that
        comes twice in a step is reported once: perhaps its value is logged before
        `optimizer.step()`, and then replaces that of the step before. An accuracy is better
        recorded by `log_eval` or `log_accuracy`.
        """
        if unnamed:
            raise TypeError(
                "log: values have names: log(loss=...), or log(**values) for a dictionary; got "
                f"{type(unnamed[0]).__name__} without a name"
            )
        if (recording := self._live) is not None and recording.writes():
            recording.rows.log(**values)

    def log_eval(
        self,
        metric: Any,
        predicted: Any,
        labels: Any,
        *older: Any,
        step: int | None = None,
        chance: float | None = None,
    ) -> float:
        """Record an evaluation; return its accuracy.

            monitor.log_eval("val_acc", predicted, labels)

        `predicted`, `labels`: classes of one shape, always of the same samples in the same order.
        `step`: the updates that the weights have seen, by default all so far. `chance`: the
        accuracy of guessing, such as 1 / number of classes. If a metric is logged several times at
        one step, the first counts. The older order of arguments, `log_eval(step, metric,
        predicted, labels)`, still works.

        Waits for the device. Raises TypeError or ValueError for what is no evaluation.
        """
        if older:
            if len(older) > 1 or step is not None:
                raise TypeError("log_eval: give (metric, predicted, labels, step=..., chance=...)")
            step, metric, predicted, labels = metric, predicted, labels, older[0]
        at = checked_step("log_eval", metric, self.step if step is None else step)
        guessing = checked_share("log_eval", "chance", chance)
        return self._add_eval(of_bits(at, metric, correct_bits(predicted, labels), guessing))

    def log_accuracy(
        self,
        metric: str,
        accuracy: float,
        *,
        n: int | None = None,
        step: int | None = None,
        chance: float | None = None,
    ) -> None:
        """Record an accuracy, a share from 0 to 1, where the predictions are not at hand.

        `n`: the number of samples. `log_eval` is better: knowing each sample tells smaller dips
        from noise, and `on("dip")` needs it. Raises TypeError or ValueError for what is none.
        """
        at = checked_step("log_accuracy", metric, self.step if step is None else step)
        if accuracy is None:
            raise TypeError("log_accuracy: accuracy must be a share from 0 to 1, got None")
        share = checked_share("log_accuracy", "accuracy", accuracy)
        guessing = checked_share("log_accuracy", "chance", chance)
        samples = 0 if n is None else checked_count("log_accuracy", "n", n)
        self._add_eval(Evaluation(at, metric, share, samples, chance=guessing))

    def _log_knn(
        self,
        step: int,
        metric: str,
        predicted: Tensor,
        labels: Tensor,
        *,
        chance: float,
        k: int,
        temperature: float,
    ) -> None:
        """Do what `log_eval` does, for the kNN of stabkit's own loop."""
        bits = correct_bits(predicted, labels)
        self._add_eval(of_bits(step, metric, bits, chance, k, temperature))

    def _add_eval(self, one: Evaluation) -> float:
        if (recording := self._live) is not None:
            recording.add_eval(one)
        return one.value

    def before_clipping(self, optimizer: Optimizer | None = None) -> None:
        """Record the gradients now; call it where they are complete and not yet clipped.

        Without it they are read when `optimizer.step()` begins. `optimizer`: whose gradients,
        where several optimizers step at different times.
        """
        if (recording := self._live) is not None:
            recording.gradients_ready(optimizer)

    def micro_batch(self) -> None:
        """Measure one micro-batch, for the level `noise`.

        Call it after the backward pass of each micro-batch, before its gradients are reduced over
        processes.
        """
        if (recording := self._live) is not None:
            recording.rows.noise.micro_batch(recording.rows.members.parameters)

    def on(self, kind: str, action: Action, *, suspected: bool = False) -> None:
        if (recording := self._live) is not None:
            recording.on(kind, action, suspected)

    on.__doc__ = Reactions.on.__doc__

    @property
    def should_stop(self) -> bool:
        """Whether an event came for which `on(kind, "stop")` was asked."""
        return self._recording is not None and self._recording.reactions.should_stop

    def flush(self) -> None:
        """Write everything of the steps so far. Wait for the device and for a disk that takes data.

        Every process must call it for a sharded model (FSDP2).
        """
        if self._recording is not None:
            self._recording.flush()

    def close(self) -> None:
        """Flush, and let go of the optimizers and the folder.

        In a `finally` through which an exception passes, or where one is handled, the training has
        failed.
        """
        if self._recording is not None:
            self._recording.close(end_by(error_in_hand(self._recording.error_before)))

    def __repr__(self) -> str:
        layers = counted(len(self.layers), "layer")
        return f"<Monitor of {str(self.rundir.path)!r}: step {self.step:,}, {layers}>"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy shows. It records nothing, because the folder has one writer."""
        facts = {name: self.__dict__[name] for name in ("rundir", "layers", "flush_every")}
        return facts | {"_last_step": self.step, "_recording": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
