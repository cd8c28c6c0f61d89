"""Where non-finite values begin in a Monitor's rows, and which of them a GradScaler expects."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.nonfinite import LOSS, nonfinite_stretches, where_it_began
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.store.names import losses

# Steps in a row that are normal: GradScaler halves its scale at each, from 65,536 to 64.
MOST_SKIPPED = 10
ACTIVATIONS = "output_rms"

Tables = Mapping[str, NDArray[np.float64]]  # signal -> [steps, layers]
Flags = Mapping[str, NDArray[np.bool_]]
Scalars = Mapping[str, tuple[IntArray, FloatArray]]


class Nonfinite(NamedTuple):
    """A stretch of non-finite values that begins at `step`.

    `signal`, `layers`: what was not finite first, and where, the likeliest layer first; no layer
    for the loss. `reached`: how many layers had a value that is not finite. `seen_at`: the step at
    which it was taken for more than a GradScaler's search for its scale. `losses`: the names of
    those that were not finite.
    """

    step: int
    signal: str
    layers: list[str]
    reached: int
    seen_at: int
    losses: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return what the log says of it."""
        names = {"names": [*self.losses]} if self.signal == LOSS else {}
        return {"layers": self.layers, "signal": self.signal, "reached": self.reached} | names


class NonfiniteReader:
    """Reads intervals in order; call `measured`, then `begun`, for each.

    `within`: whether the step before the first was non-finite.
    """

    def __init__(self, layers: Sequence[str], within: bool) -> None:
        self._layers, self._within = layers, within
        self._streak = 0  # steps skipped in a row
        self._streak_began: Nonfinite | None = None
        self._bad: dict[str, NDArray[np.bool_]] = {}

    def measured(self, values: Tables, measured: Flags, shape: tuple[int, int]) -> None:
        """Take the values of an interval, and where they were measured."""
        self._bad = bad_values(values, measured)
        self._any = np.zeros(shape, dtype=bool)
        for flags in self._bad.values():
            self._any |= flags

    def layers_a_step(self) -> NDArray[np.float64]:
        """Return how many layers have a value that is not finite, [steps]."""
        return np.asarray(self._any.sum(axis=1), dtype=np.float64)

    def begun(
        self,
        steps: IntArray,
        scalars: Scalars,
        still: BoolArray | None,
        looks: tuple[Tables, Flags],
    ) -> tuple[list[Nonfinite], BoolArray]:
        """Return the stretches that begin, and the steps that a GradScaler skipped as it should.

        `still` [steps]: whether no layer was seen to move; None if updates are never measured. At
        a step without a measured update a GradScaler is trusted to skip what is not finite: that is
        what it is for. If weights are lost all the same, the next full step shows it. `looks`: the
        values of a probe, and where they were measured.

        After `MOST_SKIPPED` steps the scaler finds no scale at all: the gradients are not finite,
        whatever the scale is, and were so from the first of these steps on.
        """
        # the only signal of a probe that is finite wherever the activations are
        activations = bad_values(*looks, names=[ACTIVATIONS])
        bad_losses = [
            (name, set(scalars[name][0][~np.isfinite(scalars[name][1])].tolist()))
            for name in losses(scalars)
        ]

        def began(i: int) -> Nonfinite:
            at = {name: flags[i] for name, flags in (self._bad | activations).items()}
            step = int(steps[i])
            lost = [name for name, bad in bad_losses if step in bad]
            return began_at(self._layers, at, step, lost, list(activations))

        any_layer: BoolArray = np.asarray(self._any.any(axis=1))
        skipped = np.zeros(len(steps), dtype=bool)
        if "grad_scale" in scalars and still is not None:
            skipped = np.isin(steps, scalars["grad_scale"][0]) & any_layer & still
        forgiven, since = skipped.copy(), {}
        for i in range(len(steps)):
            self._streak = self._streak + 1 if skipped[i] else 0
            if self._streak == 1:
                self._streak_began = began(i)
            forgiven[i] = skipped[i] and self._streak <= MOST_SKIPPED
            if self._streak == MOST_SKIPPED + 1 and self._streak_began is not None:
                since[i] = self._streak_began._replace(seen_at=int(steps[i]))
        firsts, _ = nonfinite_stretches(any_layer & ~forgiven, within=self._within)
        if len(steps):
            self._within = bool(any_layer[-1] and not forgiven[-1])
        found = [since.get(i) or began(i) for i in firsts[firsts >= 0].tolist()]
        return found, forgiven


def began_at(
    layers: Sequence[str],
    bad: Mapping[str, BoolArray],
    step: int,
    lost: Sequence[str],
    forward: Sequence[str] = (),
) -> Nonfinite:
    """Return the stretch that begins at `step`; `bad[signal]` [layers] says what is not finite.

    `lost` names the losses that are not.
    """
    signal, numbers = where_it_began(bad, forward, bool(lost))
    reached = int(np.any([*bad.values()], axis=0).sum()) if bad else 0
    named = [layers[number] for number in numbers]
    return Nonfinite(step, signal, named, reached, step, tuple(lost))


def bad_values(
    values: Tables, measured: Flags, names: Sequence[str] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Return where a signal is not finite, or counts elements that are not, [steps, layers].

    `names`: the signals to look at, of those that are there; all by default.
    """
    there = [name for name in values if names is None or name in names]
    bad = {name: measured[name] & ~np.isfinite(values[name]) for name in there}
    if "nonfinite_count" in bad:
        bad["nonfinite_count"] |= measured["nonfinite_count"] & (values["nonfinite_count"] > 0)
    return bad
