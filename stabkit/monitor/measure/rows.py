"""What a Monitor measured in an interval, as the rows that are written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.robust import FloatArray, IntArray
from stabkit.monitor.measure.layer_measure import LayerMeasure, LayerTotals
from stabkit.monitor.measure.nonfinite import Nonfinite, NonfiniteReader
from stabkit.monitor.measure.probing import ProbeResult, spread
from stabkit.monitor.measure.scalars import Series, read
from stabkit.monitor.signals.signal import DerivedSignal
from stabkit.store.writer import Writer

Values = dict[str, NDArray[np.float64]]  # signal -> [steps, layers]
Measured = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class PendingRows:
    """Rows of an interval on their way to the host; `first` is the step of the first one."""

    first: int
    totals: LayerTotals
    looks: Sequence[ProbeResult]
    series: Sequence[Series]


@dataclass(frozen=True)
class Rows:
    """Rows on the host: `values[signal]` and `measured[signal]` are [steps, layers].

    - `scalars`: steps and values of each series of the run.
    - `nonfinite`: the stretches of non-finite values that begin.
    - `null`: parameters newly found to have no gradient but rounding.
    - `skipped` [steps]: whether a GradScaler skipped the step, as it does to find its scale; None
      stands for no step.
    """

    steps: NDArray[np.int64]
    layers: Sequence[str]
    values: Mapping[str, NDArray[np.float64]]
    measured: Mapping[str, NDArray[np.bool_]]
    scalars: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    nonfinite: Sequence[Nonfinite] = ()
    skipped: NDArray[np.bool_] | None = None
    null: Sequence[str] = ()

    def series(self, signal: str) -> Iterable[tuple[str, IntArray, FloatArray]]:
        """Yield each layer's measured steps and values; nothing for a signal that is not there."""
        if signal not in self.values:
            return
        for i, layer in enumerate(self.layers):
            at = self.measured[signal][:, i]
            yield layer, self.steps[at], self.values[signal][at, i]

    def add_to(self, writer: Writer) -> None:
        """Give the rows to the writer of the folder's tables."""
        if len(self.steps):
            with np.errstate(over="ignore"):  # beyond float32: infinite
                values = {name: v.astype(np.float32) for name, v in self.values.items()}
            missing = {name: ~known for name, known in self.measured.items()}
            writer.add_layers(self.steps, list(self.layers), values, missing)
        for name, (steps, numbers) in self.scalars.items():
            writer.add_scalars(steps, name, numbers)


class RowReader:
    """Reads intervals in order. `in_nonfinite`: whether the step before the first was non-finite.

    `failed` is told of a derived signal that raised; the signal is null from then on.
    """

    def __init__(
        self,
        layers: list[str],
        derived: Sequence[DerivedSignal],
        in_nonfinite: bool,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.layers, self.derived, self._failed = layers, list(derived), failed
        self._nonfinite = NonfiniteReader(layers, in_nonfinite)

    def read(self, pending: PendingRows, measure: LayerMeasure) -> Rows:
        """Wait for the copy of an interval, and return its rows with what follows from them."""
        values, measured = measure.read(pending.totals)
        steps = pending.first + np.arange(len(pending.totals.counts))
        self._nonfinite.measured(values, measured, (len(steps), len(self.layers)))
        scalars = read(pending.series)
        if "grad_norm" in values:
            grads = np.where(measured["grad_norm"], values["grad_norm"], 0.0)
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.sqrt(np.square(grads).sum(axis=1))
            _add_own(scalars, "grad_norm_total", steps, norms)
        if measured:
            _add_own(scalars, "nonfinite_layers", steps, self._nonfinite.layers_a_step())
        for signal in list(self.derived):
            if all(name in values for name in signal.signals_of):
                try:
                    found = _derived(signal, values)
                except Exception as error:
                    self.derived.remove(signal)
                    self._failed(signal.name, error)
                    continue
                measured[signal.name] = _has_value(found, signal, values, measured)
                values[signal.name] = found
        seen, where, of_run = spread(pending.looks, steps, self.layers)
        for name, rows in _by_name(of_run).items():
            scalars[name] = rows
        still = None
        if "update_norm" in values:  # where it was not measured, nothing was seen to move
            still = ~(measured["update_norm"] & (values["update_norm"] != 0)).any(axis=1)
        begun, skipped = self._nonfinite.begun(steps, scalars, still, (seen, where))
        return Rows(
            steps,
            self.layers,
            values | seen,
            measured | where,
            scalars,
            begun,
            skipped,
            measure.null.take_new(),
        )


def _add_own(
    scalars: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    name: str,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
) -> None:
    """Add a series of the Monitor's own. A value that the loop logged comes before it."""
    if name in scalars:
        told = dict(zip(*(part.tolist() for part in scalars[name]), strict=True))
        own = dict(zip(steps.tolist(), values.tolist(), strict=True))
        whole = dict(sorted((own | told).items()))
        steps, values = np.array(list(whole), np.int64), np.array(list(whole.values()))
    scalars[name] = steps, values


def _derived(signal: DerivedSignal, values: Values) -> NDArray[np.float64]:
    found = np.asarray(signal.derive(MappingProxyType(values)), dtype=np.float64)
    shape = values[signal.signals_of[0]].shape
    if found.shape != shape:
        raise ValueError(f"derive gave {list(found.shape)}, not [steps, layers] {list(shape)}")
    return found


def _has_value(
    found: NDArray[np.float64], signal: DerivedSignal, values: Values, measured: Measured
) -> NDArray[np.bool_]:
    known = np.stack([measured[name] for name in signal.signals_of]).all(axis=0)
    finite = np.stack([np.isfinite(values[name]) for name in signal.signals_of]).all(axis=0)
    return known & ~(np.isnan(found) & finite)


def _by_name(
    of_run: Sequence[tuple[int, str, float]],
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    names = dict.fromkeys(name for _, name, _ in of_run)
    return {
        name: (
            np.array([step for step, n, _ in of_run if n == name], dtype=np.int64),
            np.array([value for _, n, value in of_run if n == name]),
        )
        for name in names
    }
