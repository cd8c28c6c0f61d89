"""What a Monitor's rows and evaluations are watched for while they come: one class a kind of event.

The detectors are those of `stabkit.detect`, so that what is found online is what the analysis finds
later. Everything here runs on the host, on values that are there already.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from stabkit.detect.collapse import SHARE, find_collapse
from stabkit.detect.online import (
    OnlineBursts,
    OnlineDips,
    OnlineSpikes,
    OnlineStaleMoments,
    Onset,
)
from stabkit.detect.robust import BoolArray, FloatArray, IntArray

# The robust z of a spike that is acted on. The analysis asks for 6 of up to 1,000 values and one
# more for every ten times as many; a run that goes on has some million before it is over. In a
# million healthy values: none at AR(1) 0 and .9 (at 6: 0 and 10), 122 with logs of Student's t(5).
SPIKE_THRESHOLD = 9.0
SPREADS = ("feature_std", "embedding_std", "effective_rank")
OTHER_SAMPLES = ("knn_bank",)  # metrics whose samples differ from one evaluation to the next


@dataclass(frozen=True)
class Event:
    """Something found: `step` is its onset, `layer` the first in depth order where it began.

    `facts` are plain values that say more:
    - spike: signal (`grad_norm`, `loss`), layers (all that began it), ratio (to the median before)
    - stale_moments: signal, layers, surprise (`gradient_surprise`)
    - nonfinite: layers, loss (whether it is not finite)
    - collapse: signal, start (its first value), level
    - dip: metric, found_at (step of the evaluation that showed it), trough, depth
    """

    kind: str
    step: int
    layer: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """An interval on the host: `values[signal]` [steps, layers], `measured[signal]` likewise."""

    steps: IntArray
    layers: Sequence[str]
    values: Mapping[str, FloatArray]
    measured: Mapping[str, BoolArray]
    scalars: Mapping[str, tuple[IntArray, FloatArray]]

    def series(self, signal: str) -> Iterable[tuple[str, IntArray, FloatArray]]:
        """Each layer's measured steps and values; nothing for a signal that is not there."""
        if signal not in self.values:
            return
        for i, layer in enumerate(self.layers):
            at = self.measured[signal][:, i]
            yield layer, self.steps[at], self.values[signal][at, i]


class Watch(Protocol):
    """Finds events of one kind in rows that come in order of steps, each step once."""

    def rows(self, rows: Seen) -> list[Event]: ...


class SpikeWatch:
    """Gradient spikes, those of several layers that belong together as one; spikes of the loss."""

    def __init__(self) -> None:
        self._layers: dict[str, OnlineSpikes] = {}
        self._bursts = OnlineBursts()
        self._loss: OnlineSpikes | None = OnlineSpikes(threshold=SPIKE_THRESHOLD)

    def rows(self, rows: Seen) -> list[Event]:
        found = []
        for layer, steps, values in rows.series("grad_norm"):
            if layer not in self._layers:
                self._layers[layer] = OnlineSpikes(threshold=SPIKE_THRESHOLD)
            found += [(onset, layer) for onset in self._layers[layer].add(steps, values)]
        return _bursts("spike", "grad_norm", "ratio", found, self._bursts) + self._of_loss(rows)

    def _of_loss(self, rows: Seen) -> list[Event]:
        steps, values = rows.scalars.get("loss", _NOTHING)
        if np.any(values < 0):
            self._loss = None  # spikes are sought in logarithms: none of such a loss, ever
        if self._loss is None:
            return []
        return [
            Event("spike", onset.step, None, {"signal": "loss", "ratio": onset.height})
            for onset in self._loss.add(steps, values)
        ]


class StaleMomentsWatch:
    """Layers whose gradient exceeds what Adam remembers; those that belong together as one."""

    def __init__(self, beta2: Mapping[str, float], first_update: int) -> None:
        self._layers = {
            layer: OnlineStaleMoments(beta, first_update=first_update)
            for layer, beta in beta2.items()
        }
        self._bursts = OnlineBursts()

    def rows(self, rows: Seen) -> list[Event]:
        found = [
            (onset, layer)
            for layer, steps, values in rows.series("adam_rms")
            if layer in self._layers
            for onset in self._layers[layer].add(steps, values)
        ]
        return _bursts("stale_moments", "adam_rms", "surprise", found, self._bursts)


class NonfiniteWatch:
    """The first step of every stretch in which a gradient or the loss is not finite."""

    def __init__(self) -> None:
        self._bad = {"layers": False, "loss": False}

    def rows(self, rows: Seen) -> list[Event]:
        bad = np.zeros((len(rows.steps), len(rows.layers)), dtype=bool)
        for signal in ("grad_norm", "nonfinite_count"):
            if signal in rows.values:
                values = rows.values[signal]
                wrong = ~np.isfinite(values) | ((signal == "nonfinite_count") & (values > 0))
                bad |= rows.measured[signal] & wrong
        of_layers = dict(zip(rows.steps.tolist(), bad, strict=True))
        steps, loss = rows.scalars.get("loss", _NOTHING)
        of_loss = dict(zip(steps.tolist(), ~np.isfinite(loss), strict=True))
        found = []
        for step in sorted(of_layers.keys() | of_loss.keys()):
            before = any(self._bad.values())
            flags = of_layers.get(step, ())
            names = [layer for layer, flag in zip(rows.layers, flags, strict=False) if flag]
            if step in of_layers:
                self._bad["layers"] = bool(names)
            if step in of_loss:
                self._bad["loss"] = bool(of_loss[step])
            if not before and any(self._bad.values()):
                facts: dict[str, Any] = {"layers": names, "loss": self._bad["loss"]}
                found.append(Event("nonfinite", step, names[0] if names else None, facts))
        return found

    def go_on_within(self) -> None:
        """The rows to come go on where gradients were not finite."""
        self._bad["layers"] = True


class CollapseWatch:
    """`find_collapse` of every measure of spread that is recorded, of the run or of a layer."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str | None], tuple[list[int], list[float]]] = {}
        self._told: set[tuple[str, str | None, int]] = set()

    def rows(self, rows: Seen) -> list[Event]:
        found = []
        for name in SPREADS:
            if name in rows.scalars:
                found += self._add(name, None, *rows.scalars[name])
            for layer, steps, values in rows.series(name):
                found += self._add(name, layer, steps, values)
        return sorted(found, key=lambda event: event.step)

    def _add(
        self, name: str, layer: str | None, steps: IntArray, values: FloatArray
    ) -> list[Event]:
        all_steps, all_values = self._series.setdefault((name, layer), ([], []))
        new = steps > (all_steps[-1] if all_steps else -1)
        all_steps += steps[new].tolist()
        all_values += values[new].tolist()
        first = next((v for v in all_values if np.isfinite(v)), np.nan)
        if not np.any(values <= SHARE * first):  # most often: cheaper than to look
            return []
        found = []
        for row in find_collapse(all_steps, all_values).to_dict("records"):
            key = (name, layer, int(row["onset"]))
            if key not in self._told:
                self._told.add(key)
                facts = {"signal": name, "start": float(row["start"]), "level": float(row["level"])}
                found.append(Event("collapse", key[2], layer, facts))
        return found


class DipWatch:
    """`find_dips` of every metric that is evaluated on the same samples each time."""

    def __init__(self) -> None:
        self._metrics: dict[str, OnlineDips] = {}

    def rows(self, rows: Seen) -> list[Event]:
        return []

    def evaluated(
        self, steps: Sequence[int], metric: str, correct: Sequence[BoolArray], chance: float
    ) -> list[Event]:
        if metric in OTHER_SAMPLES:
            return []
        if metric not in self._metrics:
            self._metrics[metric] = OnlineDips(chance if np.isfinite(chance) else 0.0)
        _, new = self._metrics[metric].extend(steps, correct)
        return [
            Event("dip", int(dip["onset"]), None, {
                "metric": metric,
                "found_at": steps[-1],
                "trough": int(dip["trough"]),
                "depth": float(dip["depth"]),
            })
            for dip in new.to_dict("records")
        ]  # fmt: skip


def beta2_of_layers(
    layers: Mapping[str, Sequence[Tensor]], optimizers: Sequence[Optimizer]
) -> dict[str, float]:
    """The beta2 of every layer that an optimizer with betas updates; of several the largest."""
    of_parameter = {
        id(p): float(group["betas"][1])
        for optimizer in optimizers
        for group in optimizer.param_groups
        if "betas" in group
        for p in group["params"]
    }
    known = {
        layer: [of_parameter[id(p)] for p in parameters if id(p) in of_parameter]
        for layer, parameters in layers.items()
    }
    return {layer: max(betas) for layer, betas in known.items() if betas}


def updates_made(optimizers: Sequence[Optimizer]) -> int | None:
    """Updates in the moments of the parameter that has most; None where that is not known."""
    counts = [
        int(state["step"])
        for optimizer in optimizers
        for state in optimizer.state.values()
        if "step" in state
    ]
    return max(counts, default=None)


_NOTHING = (np.zeros(0, dtype=np.int64), np.zeros(0))


def _bursts(
    kind: str, signal: str, measure: str, found: list[tuple[Onset, str]], bursts: OnlineBursts
) -> list[Event]:
    """One event a burst, of the layers that began it; `found` in depth order within a step."""
    together: dict[int, list[tuple[Onset, str]]] = {}
    for onset, layer in found:
        together.setdefault(onset.step, []).append((onset, layer))
    events = []
    for step, members in sorted(together.items()):
        layers = [layer for _, layer in members]
        if bursts.begins(step, layers):
            height = max(onset.height for onset, _ in members)
            facts = {"signal": signal, "layers": layers, measure: height}
            events.append(Event(kind, step, layers[0], facts))
    return events
