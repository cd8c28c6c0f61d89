"""Measure all layers in each step, and keep the rows on the device.

A row holds only sums and maxima over each unit (mostly a tensor), in one of two fixed buffers. An
interval later the host combines them by layer into the values of the signals.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.monitor.blocks import Blocks
from stabkit.monitor.measure.adam import AdamMoments, fill
from stabkit.monitor.measure.combine import alike, of_all_ranks
from stabkit.monitor.measure.host_copy import HostCopy, start_copy
from stabkit.monitor.measure.null_parameters import NullParameters, packed_biases
from stabkit.monitor.model_blocks import ModelBlocks
from stabkit.monitor.signals.basic import GradNorm
from stabkit.monitor.signals.signal import LayerSignal, Moment


@dataclass(frozen=True)
class LayerTotals:
    """Rows on their way to the host. `counts` [rows, signals, units]: elements."""

    totals: HostCopy
    counts: NDArray[np.float64]


class LayerMeasure:
    """Measures `signals` of all layers. `names[i]`, `layer[i]`: name and layer of `parameters[i]`.

    A row is one step. Call `begin_row`, then for each optimizer `gradients` and `before` ahead of
    its step and `after` behind it. Several optimizers add to the same row, each for its `members`,
    which are indices of parameters. `take` starts the copy of all rows to the host, and `read`
    returns their values there.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        names: Sequence[str],
        layer: Sequence[int],
        num_layers: int,
        signals: Iterable[LayerSignal],
        capacity: int,
        failed: Callable[[str, Exception], None],
    ) -> None:
        """`failed` is told once of a signal that raised; the signal is null from then on."""
        self.parameters = list(parameters)
        self.signals = sorted(signals, key=lambda s: s.combine)
        self._due: set[int] = set()  # signals of this row
        self._moments: set[Moment] = set()  # what they read
        self.blocks = ModelBlocks(self.parameters, packed_biases(names, self.parameters))
        self.null = NullParameters(names, self.parameters, self.blocks)
        self.rows = 0
        self._is_ours = all(type(s).__module__.startswith("stabkit.") for s in self.signals)
        self._alike = alike(self.signals)
        self._found: dict[int, dict[int, Tensor]] = {}  # signal -> part -> [blocks], of this step
        self.adam = AdamMoments(self.parameters, self.blocks)
        of_units = np.asarray(layer)[self.blocks.units]
        self._layer = [np.flatnonzero(of_units == i) for i in range(num_layers)]
        self._numel = np.array(self.blocks.numel, dtype=np.float64)
        shape = capacity, len(self.signals), len(self.blocks.units)
        self._totals = [
            torch.zeros(shape, dtype=self.blocks.exact, device=self.blocks.device) for _ in range(2)
        ]
        self._counts = [np.zeros(shape) for _ in range(2)]
        self._failed = failed
        self._dead: set[int] = set()
        self._unread: set[int] = set()  # dead signals that have no value in earlier rows either
        self._void: set[int] = set()  # rows that are made null
        self._before: Sequence[int] | None = None  # the members whose parameters `blocks` holds
        self.stale: Collection[int] = ()  # parameters whose gradients are of an earlier step

    def begin_row(self, is_full: bool = True) -> None:
        """Begin the row of a step, with all signals or with those of every step."""
        self._end_of_step()  # for gradients that no step followed
        if self.rows == len(self._counts[0]):  # an error kept them from being taken
            self.rows = 0
            self._void.clear()
        self._totals[0][self.rows].zero_()
        self._counts[0][self.rows] = 0
        self.rows += 1
        alive = ((i, s) for i, s in enumerate(self.signals) if i not in self._dead)
        self._due = {i for i, signal in alive if is_full or signal.every_step}
        self._moments = {self.signals[i].reads for i in self._due}

    def void_row(self) -> None:
        """Make the whole row null, as after an error in the middle of it."""
        self._void.add(self.rows - 1)

    @torch.no_grad()
    def gradients(self, members: Sequence[int], scale: Tensor | None) -> None:
        """Measure the gradients of `members`, which are still multiplied by `scale`."""
        if "gradients" not in self._moments:
            return
        grads = self._grads(members)
        self._before = None
        flat = self.blocks.flat(grads)
        for part in self.blocks.parts:
            if not part.is_empty(flat):
                # only our own signals may see the training's own memory
                get = part.read if self._is_ours else part.fill
                found = get(part.room, flat)
                if scale is not None:
                    found = torch.div(found, scale, out=part.room)
                part.show(found)
                self._add("gradients", part)
                part.show(part.room)  # so that nothing keeps a gradient that the loop lets go
        self._count("gradients", grads)

    @torch.no_grad()
    def before(self, members: Sequence[int]) -> None:
        """Measure the parameters of `members` before their update, and keep them for it."""
        if self._moments.isdisjoint({"parameters", "updates"}):
            return
        values = self._values(members)
        flat = self.blocks.flat(values)
        for part in self.blocks.parts:
            if not part.is_empty(flat):
                part.show(part.fill(part.kept, flat))
                self._add("parameters", part)
        self._before = members
        self._count("parameters", values)

    @torch.no_grad()
    def after(
        self,
        members: Sequence[int],
        optimizer: torch.optim.Optimizer,
        scale: Tensor | None,
        late: bool,
    ) -> None:
        """Measure update and moments of `members` after their optimizer's step.

        `scale`: what the gradients are still multiplied by. `late`: they were replaced since.
        """
        grads = self._grads(members)
        if "updates" in self._moments and self._before is members:
            flat = self.blocks.flat(self._values(members))
            for part in self.blocks.parts:
                if not part.is_empty(flat):
                    now = part.read(part.scratch, flat)
                    part.show(torch.sub(part.kept, now, out=part.room))
                    self._add("updates", part)
            self._count("updates", grads)
        self._before = None
        if "adam" in self._moments and not late:
            try:
                state = self.adam.look_at(optimizer, grads, scale)
                for part in self.blocks.parts:
                    if state is not None and not part.is_empty(state.moments):
                        fill(part, state)
                        self._add("adam", part)
            except Exception as error:  # the state or the options are not Adam's after all
                state = None
                self._moments.discard("adam")
                for i in (i for i, s in enumerate(self.signals) if s.reads == "adam"):
                    self._drop(i, error)
            if state is not None:
                self._count("adam", state.moments)
        self._end_of_step()

    def take(self) -> LayerTotals:
        """Begin to copy the rows since the last call to the host; wait for nothing."""
        self._end_of_step()  # for gradients that no step followed
        totals, counts = self._totals[0][: self.rows], self._counts[0][: self.rows].copy()
        counts[sorted(self._void)] = 0
        self._void.clear()
        self._totals.reverse()
        self._counts.reverse()
        self.rows = 0  # now: an error below must not hold up the rows to come
        if self.blocks.sharded and len(totals):  # without rows other ranks may not come here
            totals = of_all_ranks(totals, self._alike)
        return LayerTotals(start_copy(totals), counts)

    def read(
        self, pending: LayerTotals
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]]]:
        """Return each signal's values [rows, layers], and where it was measured."""
        totals, counts = pending.totals.read(), pending.counts
        for i in (i for i, signal in enumerate(self.signals) if type(signal) is GradNorm):
            keep = ~self.null.find(totals[:, i], counts[:, i])[:, None]  # [rows, 1, units]
            others = [j for j, signal in enumerate(self.signals) if signal.reads != "gradients"]
            # not by multiplying: what is left out may be infinite
            totals[:, others] = np.where(keep, totals[:, others], 0.0)
            counts[:, others] *= keep
        values, measured = {}, {}
        for i, signal in enumerate(self.signals):
            if i in self._unread:
                continue
            count = self._of_layers(counts[:, i], "sum")
            known = count > 0
            try:
                total = self._of_layers(totals[:, i], signal.combine)
                found = signal.of_layer(torch.from_numpy(total), torch.from_numpy(count.copy()))
                if found.shape != count.shape:
                    raise ValueError(
                        f"of_layer gave {list(found.shape)}, not as given {list(count.shape)}"
                    )
                values[signal.name] = found.numpy()
                values[signal.name].flags.writeable = False  # derived signals only read it
                measured[signal.name] = known
            except Exception as error:
                values.pop(signal.name, None)
                self._unread.add(i)
                self._drop(i, error)
        return values, measured

    def _of_layers(self, of_units: NDArray[np.float64], combine: str) -> NDArray[np.float64]:
        """Return sums or maxima over each layer, [rows, layers] of [rows, units]."""
        whole = [of_units[:, units] for units in self._layer]
        if combine == "sum":
            return np.stack([part.sum(1) for part in whole], 1)
        return np.stack([part.max(1, initial=0.0) for part in whole], 1)

    def _grads(self, members: Sequence[int]) -> list[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(self.parameters)
        for i in members:
            if i not in self.stale:
                grads[i] = self.parameters[i].grad
        return grads

    def _values(self, members: Sequence[int]) -> list[Tensor | None]:
        if len(members) == len(self.parameters):
            return cast(list[Tensor | None], self.parameters)
        values: list[Tensor | None] = [None] * len(self.parameters)
        for i in members:
            values[i] = self.parameters[i]
        return values

    def _add(self, moment: Moment, part: Blocks) -> None:
        """Ask the signals that read what the part shows now."""
        for i, signal in enumerate(self.signals):
            is_asked = i in self._due and signal.reads == moment
            if is_asked and (found := self._ask(i, part)) is not None:
                mine = self._found.setdefault(i, {})
                before = mine.get(part.first)
                if before is not None:  # other optimizers stepped before, with their blocks 0 here
                    found = before + found if signal.combine == "sum" else before.maximum(found)
                elif not self._is_ours:  # it may view what others overwrite
                    found = found.clone()
                mine[part.first] = found

    def _ask(self, i: int, part: Blocks) -> Tensor | None:
        """Return the signal of each block; None if it raised, and it is not asked again."""
        values = part.values
        version = values._version
        try:
            found = self.signals[i].of_blocks(part)
            if values._version != version:
                raise ValueError("of_blocks changed blocks.values, which others read after it")
            if found.shape != values.shape[:1]:
                raise ValueError(f"of_blocks gave {list(found.shape)}, not [{len(values)}]")
            if found.device != values.device:
                raise ValueError(f"of_blocks gave a tensor on {found.device}")
        except Exception as error:
            self._drop(i, error)
            if values._version != version:
                self.void_row()
            return None
        return found

    def _count(self, moment: Moment, tensors: Sequence[Tensor | None]) -> None:
        """Count the elements of the tensors that are there."""
        elements = self._numel * [tensors[i] is not None for i in self.blocks.units]
        for i, signal in enumerate(self.signals):
            if i in self._due and signal.reads == moment:
                self._counts[0][self.rows - 1, i] += elements

    def _end_of_step(self) -> None:
        """Add up the blocks by unit, at once for all signals that combine in the same way."""
        found_of, self._found = self._found, {}  # now: an error must not come again
        for combine, signals in self._alike.items():
            if found_of.keys().isdisjoint(signals):
                continue
            found = self.blocks.of_units([found_of.get(i, {}) for i in signals], combine)
            into = self._totals[0][self.rows - 1, signals.start : signals.stop]
            if combine == "sum":
                into.add_(found)
            else:
                torch.maximum(into, found, out=into)

    def _drop(self, i: int, error: Exception) -> None:
        self._dead.add(i)
        self._due.discard(i)
        self._failed(self.signals[i].name, error)
