"""Watches for events in a Monitor's rows as they come, one class a kind of event.

The detectors are those of `stabkit.detect`, so that the analysis finds later what was found online.
Everything here runs on the host, on values that are there already.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
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
from stabkit.detect.online_departure import OnlineDepartures
from stabkit.detect.online_dips import State
from stabkit.detect.robust import FloatArray, IntArray
from stabkit.detect.spikes import MERGE
from stabkit.monitor.measure.nonfinite import Nonfinite, bad_values, began_at
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.react.confirming import Confirming
from stabkit.monitor.react.events import OnlineEvent
from stabkit.store.names import is_total, losses, with_level


class Watch(Protocol):
    """Finds events of one kind in rows that come in order of steps, each step once."""

    def rows(self, rows: Rows) -> list[OnlineEvent]: ...


class SpikeWatch:
    """Gradient spikes, those of several layers that belong together as one; spikes of losses too.

    A spike is suspected when it is found, and confirmed when it stands out from the noise of the
    run so far.
    """

    def __init__(self) -> None:
        self._layers: dict[str, OnlineSpikes] = {}
        self._shared = OnlineSharedSpikes()
        self._latest_shared: dict[str, int] = {}
        self._bursts = OnlineBursts()
        self._confirming = Confirming(GAP)
        self._losses: dict[str, OnlineSpikes | None] = {}
        self._confirming_losses: dict[str, Confirming] = {}
        self._loss_bursts = OnlineBursts()

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        of_layers = self._of_layers(rows) if "grad_norm" in rows.values else []
        return of_layers + self._of_losses(rows)

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

    def _of_losses(self, rows: Rows) -> list[OnlineEvent]:
        begun: dict[str, tuple[list[Onset], set[int]]] = {}
        for name in losses(rows.scalars):
            if np.any(rows.scalars[name][1] < 0):
                self._losses[name] = None  # a logarithm is searched, which negative losses lack
            spikes = self._losses.setdefault(name, OnlineSpikes())
            if spikes is not None:
                begun[name] = spikes.add(*rows.scalars[name]), set(spikes.flagged)
        found = [(onset, name) for name, (onsets, _) in begun.items() for onset in onsets]
        found.sort(key=lambda one: one[0].step)
        first = _bursts("spike", "", "ratio", found, self._loss_bursts, "suspected")
        events = []
        for name, (_, flagged) in begun.items():
            own = [_of_one_loss(event, name) for event in first if event.layer == name]
            steps, values = rows.scalars[name]
            confirming = self._confirming_losses.setdefault(name, Confirming(MERGE))
            events += confirming.add(own, [name], steps, values[:, None], flagged)
        return events


class DepartureWatch:
    """Losses that leave their best level (`OnlineDepartures`), of those that have a level.

    Parts of a total beside it may rise in a healthy run, and are not watched.
    """

    def __init__(self) -> None:
        self._losses: dict[str, OnlineDepartures] = {}

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        level = with_level(losses(rows.scalars))
        found = []
        for name in [name for name in level if is_total(name)] or level:
            watched = self._losses.setdefault(name, OnlineDepartures())
            for one in watched.add(*rows.scalars[name]):
                facts = {"signal": name, "best": one.best, "level": one.level}
                found.append(OnlineEvent("departure", one.step, None, facts))
        return found


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
    """The first step of every stretch in which a gradient or a loss is not finite."""

    def __init__(self) -> None:
        self._layers = False
        self._losses: dict[str, bool] = {}  # whether the last value of each was not finite

    def rows(self, rows: Rows) -> list[OnlineEvent]:
        bad = bad_values(rows.values, rows.measured, OF_GRADIENTS)
        flags = np.any([*bad.values()], axis=0) if bad else np.zeros((0, 0), dtype=bool)
        of_layers = dict(zip(rows.steps.tolist(), flags, strict=bool(bad)))
        of_losses: dict[int, dict[str, bool]] = {}
        for name in losses(rows.scalars):
            steps, values = rows.scalars[name]
            for step, is_lost in zip(steps.tolist(), ~np.isfinite(values), strict=True):
                of_losses.setdefault(step, {})[name] = bool(is_lost)
        within = self._layers or any(self._losses.values())
        all_steps = sorted(of_layers.keys() | of_losses.keys())
        is_bad: list[bool] = []
        lost: list[list[str]] = []
        for step in all_steps:
            # layers and losses need not have the same steps: each is bad until its next value
            if step in of_layers:
                self._layers = bool(of_layers[step].any())
            self._losses.update(of_losses.get(step, {}))
            lost.append([name for name, is_lost in self._losses.items() if is_lost])
            is_bad.append(self._layers or bool(lost[-1]))
        firsts, _ = nonfinite_stretches(is_bad, within)
        begun = {one.seen_at: one for one in rows.nonfinite}
        return [
            _nonfinite(rows, begun.get(all_steps[i]), all_steps[i], lost[i])
            for i in firsts[firsts >= 0].tolist()
        ]

    def begin_within(self) -> None:
        """Take the gradients before the first row to be non-finite, as after a resume."""
        self._layers = True


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


def _of_one_loss(event: OnlineEvent, name: str) -> OnlineEvent:
    facts = {"signal": name, "ratio": event.facts["ratio"]}
    return replace(event, layer=None, facts=facts)


def _nonfinite(rows: Rows, begun: Nonfinite | None, step: int, lost: list[str]) -> OnlineEvent:
    """Return the event of a stretch that begins; `begun` is what its rows say of it."""
    if begun is None:  # of rows that were read from the folder
        bad, at = bad_values(rows.values, rows.measured), np.flatnonzero(rows.steps == step)
        begun = began_at(rows.layers, {n: t[at[0]] for n, t in bad.items() if len(at)}, step, lost)
    facts = {"layers": begun.layers, "signal": begun.signal, "loss": bool(lost)}
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
