"""The Monitor: attach to a model and its optimizer, record every layer at every step."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stabkit.monitor.layers import group_layers
from stabkit.monitor.norms import LayerNorms
from stabkit.monitor.ring import Block, start_copy
from stabkit.rundir import RunDir
from stabkit.store.reader import Run
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer, trim


class Monitor:
    """Records gradient and parameter norms of every layer at every optimizer step.

        with stabkit.Monitor(model, optimizer, "runs/mine") as monitor:
            for images in loader:
                loss = train_step(images)       # ends with optimizer.step()
                monitor.log(loss=loss)

    Gradients are read when `optimizer.step()` begins: accumulated, reduced, not yet applied.
    Nothing is drawn from a random generator, no parameter is touched and the host never waits for
    the device within an interval, so training is bit for bit what it is without the monitor.

    Arguments:
    - `folder`: the run's folder. Rows at or after `first_step` that it already holds are removed.
    - `first_step`: the step the next `optimizer.step()` is; pass it when a training resumes.
    - `flush_every`: steps an interval; values reach the disk at the end of the one after.
    - `images_per_step`: when given, `images_per_s` is recorded once an interval.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | Path,
        *,
        first_step: int = 0,
        flush_every: int = 50,
        images_per_step: int | None = None,
        run: str | None = None,
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters()]
        if not named:
            raise ValueError("Monitor: the model has no parameters to measure")
        self.rundir = RunDir(Path(folder))
        self.step = first_step
        self.flush_every = flush_every
        self.images_per_step = images_per_step
        self.layers, index = group_layers([name for name, _ in named])
        self._norms = LayerNorms([p for _, p in named], index, len(self.layers))
        self.rundir.path.mkdir(parents=True, exist_ok=True)
        trim(self.rundir.path, first_step)
        self.rundir.trim_events(first_step)
        self.writer = Writer(self.rundir.path, run or self.rundir.path.name)
        self._rows: list[Tensor] = []
        self._scalars: dict[str, list[tuple[int, Tensor | float]]] = {}
        self._waiting: list[tuple[int, Block]] = []
        self._waiting_scalars: list[tuple[str, NDArray[np.int64], Block | NDArray[np.float64]]] = []
        self._interval_began = time.monotonic()
        # a stretch of non-finite steps that a restart falls into is still one event
        recorded = Run(self.rundir.path).scalar("nonfinite_layers")
        self._in_nonfinite = bool(recorded.get(first_step - 1, 0.0) > 0)
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def log(self, **values: Tensor | float) -> None:
        """Scalars of the step whose `optimizer.step()` ran last. Tensors are not waited for."""
        step = max(self.step - 1, 0)
        for name, value in values.items():
            if isinstance(value, Tensor):
                # a copy: a captured graph or an in-place update may overwrite the original
                value = value.detach().to(torch.float64, copy=True).reshape(())
            self._scalars.setdefault(name, []).append((step, value))

    def log_eval(
        self,
        step: int,
        metric: str,
        predicted: Tensor,
        labels: Tensor,
        k: int,
        temperature: float,
        num_classes: int,
    ) -> float:
        """Record an evaluation; returns its accuracy. Waits for the device."""
        correct = (predicted == labels).cpu().numpy()
        accuracy = float(correct.mean())
        self.writer.add_eval(step, metric, accuracy, 1 / num_classes, k, temperature, correct)
        return accuracy

    def _before_step(self) -> None:
        if self._rows and len(self._rows) >= self.flush_every:
            self._end_interval()
        self._rows.append(self._norms.measure())

    def _after_step(self) -> None:
        self.step += 1

    def _end_interval(self) -> None:
        """Write the interval before this one, send this one on its way to the host."""
        self._write_waiting()
        if not self._rows:
            return
        first = self.step - len(self._rows)
        if self.images_per_step is not None:
            seconds = time.monotonic() - self._interval_began
            rate = self.images_per_step * len(self._rows) / seconds
            self._scalars["images_per_s"] = [(self.step - 1, rate)]
        self._interval_began = time.monotonic()
        self._waiting.append((first, start_copy(self._rows)))
        for name, series in self._scalars.items():
            steps = np.array([step for step, _ in series], dtype=np.int64)
            self._waiting_scalars.append((name, steps, _copy([v for _, v in series])))
        self._rows, self._scalars = [], {}

    def _write_waiting(self) -> None:
        for first, block in self._waiting:
            values = block.read()
            steps = np.arange(first, first + len(values))
            self._add_layers(steps, values)
        for name, steps, series in self._waiting_scalars:
            values = series.read() if isinstance(series, Block) else series
            self.writer.add_scalars(steps, name, values)
        self._waiting, self._waiting_scalars = [], []
        self.writer.flush()

    def _add_layers(self, steps: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """`values`: [steps, signals, layers]."""
        signals = {s: values[:, i].astype(np.float32) for i, s in enumerate(SIGNALS)}
        missing = {s: signals[s] < 0 for s in SIGNALS}
        self.writer.add_layers(steps, self.layers, signals, missing)
        grads = np.where(missing["grad_norm"], 0.0, values[:, 0])
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sqrt(np.square(grads).sum(axis=1))
        bad = np.logical_not(np.isfinite(values).all(axis=1))  # [steps, layers]
        self.writer.add_scalars(steps, "grad_norm_total", total)
        self.writer.add_scalars(steps, "nonfinite_layers", bad.sum(axis=1).astype(np.float64))
        self._report_nonfinite(steps, bad)

    def _report_nonfinite(self, steps: NDArray[np.int64], bad: NDArray[np.bool_]) -> None:
        """One event where a run of non-finite steps begins, with the layers that began it."""
        for step, layers in zip(steps, bad, strict=True):
            if layers.any() and not self._in_nonfinite:
                names = [self.layers[i] for i in np.flatnonzero(layers)]
                self.rundir.append_event("nonfinite", int(step), layers=names)
            self._in_nonfinite = bool(layers.any())

    def flush(self) -> None:
        """Everything of the steps done so far, on disk. Waits for the device."""
        self._end_interval()
        self._write_waiting()

    def close(self) -> None:
        """Flush, and let go of the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.flush()


def _copy(values: list[Tensor | float]) -> Block | NDArray[np.float64]:
    tensors = [v for v in values if isinstance(v, Tensor)]
    if len(tensors) == len(values):
        return start_copy(tensors)
    return np.array([float(v) for v in values], dtype=np.float64)
