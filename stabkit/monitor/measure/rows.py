"""What a Monitor measured in an interval, as the rows that are written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.nonfinite import nonfinite_stretches
from stabkit.detect.robust import FloatArray, IntArray
from stabkit.monitor.measure.layer_measure import LayerMeasure, LayerTotals
from stabkit.monitor.measure.probing import Look, spread
from stabkit.monitor.measure.scalars import Series, read
from stabkit.monitor.signals.signal import DerivedSignal
from stabkit.store.writer import Writer

# Steps in a row that are normal: GradScaler halves its scale at each, from 65,536 to 64.
MOST_SKIPPED = 10

Values = dict[str, NDArray[np.float64]]  # signal -> [steps, layers]
Measured = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class PendingRows:
    """Rows of an interval on their way to the host; `first` is the step of the first one."""

    first: int
    totals: LayerTotals
    looks: Sequence[Look]
    series: Sequence[Series]


@dataclass(frozen=True)
class Rows:
    """Rows on the host: `values[signal]` and `measured[signal]` are [steps, layers].

    - `scalars`: steps and values of each series of the run.
    - `nonfinite`: step and layers where a stretch of non-finite values begins.
    - `null`: parameters newly found to have no gradient but rounding.
    - `skipped` [steps]: whether a GradScaler skipped the step, as it does to find its scale; None
      stands for no step.
    """

    steps: NDArray[np.int64]
    layers: Sequence[str]
    values: Mapping[str, NDArray[np.float64]]
    measured: Mapping[str, NDArray[np.bool_]]
    scalars: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    nonfinite: Sequence[tuple[int, list[str]]] = ()
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
        self.layers, self.derived, self._in_nonfinite = layers, list(derived), in_nonfinite
        self._failed = failed
        self._streak = 0  # steps skipped in a row

    def read(self, pending: PendingRows, measure: LayerMeasure) -> Rows:
        """Wait for the copy of an interval, and return its rows with what follows from them."""
        values, measured = measure.read(pending.totals)
        steps = pending.first + np.arange(len(pending.totals.counts))
        bad = _nonfinite(values, measured, (len(steps), len(self.layers)))
        scalars = read(pending.series)
        if "grad_norm" in values:
            grads = np.where(measured["grad_norm"], values["grad_norm"], 0.0)
            with np.errstate(over="ignore", invalid="ignore"):
                scalars["grad_norm_total"] = steps, np.sqrt(np.square(grads).sum(axis=1))
        if measured:
            scalars["nonfinite_layers"] = steps, bad.sum(axis=1).astype(np.float64)
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
        skipped = self._forgive(_skipped(steps, values, scalars, bad))
        bad[skipped] = False
        seen, where, of_run = spread(pending.looks, steps, self.layers)
        for name, rows in _by_name(of_run).items():
            scalars[name] = rows
        return Rows(
            steps,
            self.layers,
            values | seen,
            measured | where,
            scalars,
            self._begins(steps, bad),
            skipped,
            measure.null.take_new(),
        )

    def _forgive(self, skipped: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which skipped steps are normal: the first ones of every stretch.

        After so many the GradScaler finds no scale at all: the gradients are not finite, whatever
        the scale is.
        """
        forgiven = skipped.copy()
        for i, is_skipped in enumerate(skipped):
            self._streak = self._streak + 1 if is_skipped else 0
            forgiven[i] = is_skipped and self._streak <= MOST_SKIPPED
        return forgiven

    def _begins(
        self, steps: NDArray[np.int64], bad: NDArray[np.bool_]
    ) -> list[tuple[int, list[str]]]:
        """Return the step where each non-finite stretch begins, and the layers that began it."""
        any_layer: NDArray[np.bool_] = np.asarray(bad.any(axis=1))
        firsts, _ = nonfinite_stretches(any_layer, within=self._in_nonfinite)
        if len(any_layer):
            self._in_nonfinite = bool(any_layer[-1])
        return [
            (int(steps[i]), [self.layers[j] for j in np.flatnonzero(bad[i])])
            for i in firsts[firsts >= 0]
        ]


def _nonfinite(values: Values, measured: Measured, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where a signal is not finite, or counted elements that are not, [steps, layers]."""
    bad = np.zeros(shape, dtype=bool)
    for name, found in values.items():
        bad |= measured[name] & ~np.isfinite(found)
    if "nonfinite_count" in values:
        bad |= measured["nonfinite_count"] & (values["nonfinite_count"] > 0)
    return bad


def _skipped(
    steps: NDArray[np.int64],
    values: Values,
    scalars: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    bad: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return the steps of a GradScaler with non-finite gradients and no update, [steps]."""
    if "grad_scale" not in scalars or "update_norm" not in values:
        return np.zeros(len(steps), dtype=bool)
    still = (values["update_norm"] == 0).all(axis=1)
    found: NDArray[np.bool_] = np.isin(steps, scalars["grad_scale"][0]) & bad.any(axis=1) & still
    return found


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
