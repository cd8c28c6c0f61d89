"""Watches for events in a Monitor's rows as they come, one class a kind of event.

The detectors are those of `stabkit.detect`, so that the analysis finds later what was found online.
Everything here runs on the host, on values that are there already.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from stabkit.detect.bursts import GAP
from stabkit.detect.collapse import SHARE, SPREADS, find_collapse
from stabkit.detect.nonfinite import OF_GRADIENTS, nonfinite_stretches
from stabkit.detect.online import (
    OnlineBursts,
    OnlineSharedSpikes,
    OnlineSpikes,
    OnlineStaleMoments,
    Onset,
)
from stabkit.detect.online_dips import State
from stabkit.detect.robust import FloatArray, IntArray
from stabkit.detect.spikes import MERGE
from stabkit.monitor.measure.nonfinite import Nonfinite, bad_values, began_at
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.confirming import Confirming
from stabkit.monitor.react.events import OnlineEvent


class Watch(Protocol):
    """Finds events of one kind in rows that come in order of steps, each step once."""

    def rows(self, rows: Rows) -> list[OnlineEvent]: ...


class SpikeWatch:
    """Gradient spikes, those of several layers that belong together as one; spikes of the loss.

    A spike is suspected when it is found, and confirmed when it stands out from the noise of the
    run so far.
    """

    def __init__(self) -> None:
        self._layers: dict[str, OnlineSpikes] = {}
        self._shared = OnlineSharedSpikes()
        self._latest_shared: dict[str, int] = {}
        self._bursts = OnlineBursts()
        self._confirming = Confirming(GAP)
        self._loss: OnlineSpikes | None = OnlineSpikes()
        self._confirming_loss = Confirming(MERGE)

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        of_layers = self._of_layers(rows) if "grad_norm" in rows.values else []
        return of_layers + self._of_loss(rows)

    def _of_layers(self, rows: Rows) -> list[OnlineEvent]:
        found, flagged = [], set()
        for layer, steps, values in rows.series("grad_norm"):
            if layer not in self._layers:
                self._layers[layer] = OnlineSpikes()
            last = self._latest_shared.get(layer, -math.inf)
            own = self._layers[layer].add(steps, values)
            found += [(onset, layer) for onset in own if onset.step - last > MERGE]
            flagged.update(self._layers[layer].flagged)
        norms = np.where(rows.measured["grad_norm"], rows.values["grad_norm"], np.nan)
        for onset, layer in self._shared.add(rows.layers, rows.steps, norms):
            # unless the layer has just spiked by itself
            if onset.step - self._layers[layer].latest > MERGE:
                self._latest_shared[layer] = onset.step
                found.append((onset, layer))
        flagged.update(self._shared.flagged)
        begun = _bursts("spike", "grad_norm", "ratio", found, self._bursts, "suspected")
        return self._confirming.add(begun, rows.layers, rows.steps, norms, flagged)

    def _of_loss(self, rows: Rows) -> list[OnlineEvent]:
        steps, values = rows.scalars.get("loss", _NOTHING)
        if np.any(values < 0):
            self._loss = None  # the search is in the logarithm, which a negative loss has not
        if self._loss is None:
            return []
        begun = []
        for onset in self._loss.add(steps, values):
            facts = {"signal": "loss", "ratio": onset.height}
            begun.append(OnlineEvent("spike", onset.step, None, facts, "suspected"))
        flagged = set(self._loss.flagged)
        return self._confirming_loss.add(begun, ["loss"], steps, values[:, None], flagged)


class StaleMomentsWatch:
    """Layers whose gradient exceeds what Adam remembers; those that belong together as one."""

    def __init__(self, beta2: Mapping[str, float], first_update: int) -> None:
        self._layers = {
            layer: OnlineStaleMoments(beta, first_update=first_update)
            for layer, beta in beta2.items()
        }
        self._bursts = OnlineBursts()

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        found = [
            (onset, layer)
            for layer, steps, values in rows.series("adam_rms")
            if layer in self._layers
            for onset in self._layers[layer].add(steps, values)
        ]
        return _bursts("stale_moments", "adam_rms", "surprise", found, self._bursts, "confirmed")


class NonfiniteWatch:
    """The first step of every stretch in which a gradient or the loss is not finite."""

    def __init__(self) -> None:
        self._bad = {"layers": False, "loss": False}

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        bad = bad_values(rows.values, rows.measured, OF_GRADIENTS)
        flags = np.any([*bad.values()], axis=0) if bad else np.zeros((0, 0), dtype=bool)
        of_layers = dict(zip(rows.steps.tolist(), flags, strict=bool(bad)))
        steps, loss = rows.scalars.get("loss", _NOTHING)
        of_loss = dict(zip(steps.tolist(), ~np.isfinite(loss), strict=True))
        within = any(self._bad.values())
        all_steps = sorted(of_layers.keys() | of_loss.keys())
        is_bad: list[bool] = []
        loss_is_bad: list[bool] = []
        for step in all_steps:
            # layers and the loss need not have the same steps: each is bad until its next value
            if step in of_layers:
                self._bad["layers"] = bool(of_layers[step].any())
            if step in of_loss:
                self._bad["loss"] = bool(of_loss[step])
            is_bad.append(any(self._bad.values()))
            loss_is_bad.append(self._bad["loss"])
        firsts, _ = nonfinite_stretches(is_bad, within)
        begun = {one.seen_at: one for one in rows.nonfinite}
        return [
            _nonfinite(rows, begun.get(all_steps[i]), all_steps[i], loss_is_bad[i])
            for i in firsts[firsts >= 0].tolist()
        ]

    def begin_within(self) -> None:
        """Take the gradients before the first row to be non-finite, as after a resume."""
        self._bad["layers"] = True


class CollapseWatch:
    """`find_collapse` of every measure of spread that is recorded, of the run or of a layer."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str | None], tuple[list[int], list[float]]] = {}
        self._told: set[tuple[str, str | None, int]] = set()

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        found = []
        for name in SPREADS:
            if name in rows.scalars:
                found += self._add(name, None, *rows.scalars[name])
            for layer, steps, values in rows.series(name):
                found += self._add(name, layer, steps, values)
        return sorted(found, key=lambda event: event.step)

    def _add(
        self, name: str, layer: str | None, steps: IntArray, values: FloatArray
    ) -> list[OnlineEvent]:
        all_steps, all_values = self._series.setdefault((name, layer), ([], []))
        new = steps > (all_steps[-1] if all_steps else -1)
        all_steps += steps[new].tolist()
        all_values += values[new].tolist()
        first = next((v for v in all_values if np.isfinite(v)), np.nan)
        if not np.any(values <= SHARE * first):  # a cheap test that settles most calls
            return []
        found = []
        for row in find_collapse(all_steps, all_values).to_dict("records"):
            key = (name, layer, int(row["onset"]))
            if key not in self._told:
                self._told.add(key)
                facts = {"signal": name, "start": float(row["start"]), "level": float(row["level"])}
                found.append(OnlineEvent("collapse", key[2], layer, facts))
        return found


_NOTHING = (np.zeros(0, dtype=np.int64), np.zeros(0))


def _nonfinite(rows: Rows, begun: Nonfinite | None, step: int, loss: bool) -> OnlineEvent:
    """Return the event of a stretch that begins; `begun` is what its rows say of it."""
    if begun is None:  # of rows that were read from the folder
        bad, at = bad_values(rows.values, rows.measured), np.flatnonzero(rows.steps == step)
        begun = began_at(rows.layers, {n: t[at[0]] for n, t in bad.items() if len(at)}, step, loss)
    facts = {"layers": begun.layers, "signal": begun.signal, "loss": loss}
    return OnlineEvent("nonfinite", begun.step, next(iter(begun.layers), None), facts)


def _bursts(
    kind: str,
    signal: str,
    measure: str,
    found: list[tuple[Onset, str]],
    bursts: OnlineBursts,
    state: State,
) -> list[OnlineEvent]:
    """Return one event for each burst, with the layers that began it.

    `found` is in depth order within a step.
    """
    together: dict[int, list[tuple[Onset, str]]] = {}
    for onset, layer in found:
        together.setdefault(onset.step, []).append((onset, layer))
    events = []
    for step, members in sorted(together.items()):
        layers = [layer for _, layer in members]
        if bursts.begins(step, layers):
            height = max(onset.height for onset, _ in members)
            facts = {"signal": signal, "layers": layers, measure: height}
            events.append(OnlineEvent(kind, step, layers[0], facts, state))
    return events
