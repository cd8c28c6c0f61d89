"""What a Monitor measured in an interval, as the rows that are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from stabkit.monitor.measure.layer_measure import Interval, LayerMeasure
from stabkit.monitor.measure.probing import Look, spread
from stabkit.monitor.measure.scalars import Series, read
from stabkit.monitor.signals.signal import DerivedSignal
from stabkit.store.writer import Writer

# steps in a row: GradScaler halves its scale at each, and needs as many from 65,536 to 64
MOST_SKIPPED = 10

Values = dict[str, NDArray[np.float64]]  # of each signal [steps, layers]
Measured = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Waiting:
    """An interval on its way to the host; `first`: the step of its first row."""

    first: int
    interval: Interval
    looks: Sequence[Look]
    series: Sequence[Series]


@dataclass(frozen=True)
class Rows:
    """An interval on the host. `nonfinite`: (step, layers) where a stretch of them begins.
    `skipped` [steps]: whether a GradScaler passed over the step, as it does to find its scale."""

    steps: NDArray[np.int64]
    layers: list[str]
    values: Values
    measured: Measured
    scalars: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    nonfinite: list[tuple[int, list[str]]]
    skipped: NDArray[np.bool_]

    def add_to(self, writer: Writer) -> None:
        if len(self.steps):
            with np.errstate(over="ignore"):  # beyond float32: infinite
                values = {name: v.astype(np.float32) for name, v in self.values.items()}
            missing = {name: ~known for name, known in self.measured.items()}
            writer.add_layers(self.steps, self.layers, values, missing)
        for name, (steps, numbers) in self.scalars.items():
            writer.add_scalars(steps, name, numbers)


class RowReader:
    """Reads intervals in order; `in_nonfinite`: whether the step before the first was one.

    `failed` is told of a derived signal that raised; it is null from then on.
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

    def read(self, waiting: Waiting, measure: LayerMeasure) -> Rows:
        values, measured = measure.read(waiting.interval)
        steps = waiting.first + np.arange(len(waiting.interval.counts))
        bad = _nonfinite(values, measured, (len(steps), len(self.layers)))
        scalars = read(waiting.series)
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
        skipped = self._excused(_skipped(steps, values, scalars, bad))
        bad[skipped] = False
        seen, where, of_run = spread(waiting.looks, steps, self.layers)
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
        )

    def _excused(self, skipped: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the steps that a GradScaler skipped those of short stretches. Where it finds no scale
        at all, the gradients are not finite whatever it is."""
        excused = skipped.copy()
        for i, is_skipped in enumerate(skipped):
            self._streak = self._streak + 1 if is_skipped else 0
            excused[i] = is_skipped and self._streak <= MOST_SKIPPED
        return excused

    def _begins(
        self, steps: NDArray[np.int64], bad: NDArray[np.bool_]
    ) -> list[tuple[int, list[str]]]:
        """One event where a stretch of non-finite steps begins, with the layers that began it."""
        begins = []
        for step, layers in zip(steps, bad, strict=True):
            if layers.any() and not self._in_nonfinite:
                begins.append((int(step), [self.layers[i] for i in np.flatnonzero(layers)]))
            self._in_nonfinite = bool(layers.any())
        return begins


def _nonfinite(values: Values, measured: Measured, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """[steps, layers] whether a signal is not finite, or counted elements that are not."""
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
    """[steps] with a GradScaler, gradients that are not finite and no update."""
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
