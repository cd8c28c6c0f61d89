"""Every layer at every step: what the signals of layers read, and where their rows wait.

Of each step only sums and maxima over the layers are kept, on the device, in one of two fixed
buffers. What they mean is worked out on the host, an interval later.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.monitor.adam import AdamState
from stabkit.monitor.blocks import Blocks
from stabkit.monitor.ring import Block, start_copy
from stabkit.monitor.signals import LayerSignal, Moment

Presence = tuple[bool, ...]


@dataclass(frozen=True)
class Interval:
    """Rows on their way to the host. `counts` [rows, signals, layers]: elements present."""

    totals: Block
    counts: NDArray[np.float64]


class LayerMeasure:
    """Measures `signals` of all layers; `layer[i]` is the layer of `parameters[i]`.

    A row is one step. `gradients`, then `before` come before an optimizer's step, `after` after it;
    several optimizers that step one after the other add to the same row, each its `members`, which
    are numbers of parameters.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        layer: Sequence[int],
        num_layers: int,
        signals: Iterable[LayerSignal],
        capacity: int,
        failed: Callable[[str, Exception], None],
    ) -> None:
        """`failed` is told of a signal that raised, once; it is null from then on."""
        self.parameters = list(parameters)
        self.signals = sorted(signals, key=lambda s: (s.reads, s.combine))
        self.blocks = Blocks(self.parameters, layer, num_layers)
        self.rows = 0
        self._moments = {signal.reads for signal in self.signals}
        self._groups = _grouped(self.signals)
        self._adam = AdamState(self.parameters, self.blocks)
        self._layer = np.asarray(layer)
        self._numel = np.array([p.numel() for p in self.parameters], dtype=np.float64)
        shape = capacity, len(self.signals), num_layers
        device = self.blocks.values.device
        # float32 has no integers beyond 2^24, which a large layer's elements exceed
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._totals = [torch.zeros(shape, dtype=self._dtype, device=device) for _ in range(2)]
        self._counts = [np.zeros(shape) for _ in range(2)]
        self._elements: dict[Presence, NDArray[np.float64]] = {}
        self._failed = failed
        self._dead: set[int] = set()

    def begin_row(self) -> None:
        self._totals[0][self.rows].zero_()
        self._counts[0][self.rows] = 0
        self.rows += 1

    @torch.no_grad()
    def gradients(self, members: Sequence[int], scale: Tensor | None) -> None:
        """`scale`: what the gradients are still multiplied by."""
        if "gradients" not in self._moments:
            return
        grads = self._grads(members)
        self.blocks.fill(grads)
        if scale is not None:
            self.blocks.values.div_(scale)
        self._add("gradients", tuple(g is not None for g in grads))

    @torch.no_grad()
    def before(self, members: Sequence[int]) -> None:
        if self._moments.isdisjoint({"parameters", "updates"}):
            return
        values = self._values(members)
        self.blocks.fill(values)
        self._add("parameters", tuple(v is not None for v in values))

    @torch.no_grad()
    def after(
        self, members: Sequence[int], optimizer: torch.optim.Optimizer, scale: Tensor | None
    ) -> None:
        """Reads the difference to what `before` left in `blocks`."""
        grads = self._grads(members)
        if "updates" in self._moments:
            self.blocks.subtract(self._values(members))
            self._add("updates", tuple(g is not None for g in grads))
        if "adam" in self._moments:
            present = self._adam.fill(optimizer, grads, scale)
            if any(present):
                self._add("adam", present)

    def take(self) -> Interval:
        """The rows since the last time, begun to be copied; waits for nothing."""
        totals, counts = self._totals[0][: self.rows], self._counts[0][: self.rows].copy()
        if self.blocks.sharded and self.rows:  # without rows some ranks may not come here
            totals = self._of_all_ranks(totals)
        self._totals.reverse()
        self._counts.reverse()
        self.rows = 0
        return Interval(start_copy(totals), counts)

    def read(
        self, interval: Interval
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]]]:
        """Of each signal its values [rows, layers], and where it was measured."""
        totals = torch.from_numpy(interval.totals.read())
        values, measured = {}, {}
        for i, signal in enumerate(self.signals):
            count = interval.counts[:, i]
            try:
                found = signal.of_layer(totals[:, i], torch.from_numpy(count))
                values[signal.name] = np.broadcast_to(found.numpy(), count.shape)
                measured[signal.name] = count > 0
            except Exception as error:
                self._drop(i, error)
        return values, measured

    def _grads(self, members: Sequence[int]) -> list[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(self.parameters)
        for i in members:
            grads[i] = self.parameters[i].grad
        return grads

    def _values(self, members: Sequence[int]) -> list[Tensor | None]:
        if len(members) == len(self.parameters):
            return cast(list[Tensor | None], self.parameters)
        values: list[Tensor | None] = [None] * len(self.parameters)
        for i in members:
            values[i] = self.parameters[i]
        return values

    def _add(self, moment: Moment, present: Presence) -> None:
        """Add what `blocks` holds to the row; `present`: of which parameters."""
        row, elements = self.rows - 1, self._count(present)
        for (reads, combine), signals in self._groups.items():
            if reads != moment:
                continue
            rows = torch.stack([self._of_blocks(i) for i in signals])
            found = self.blocks.of_layers(rows, combine)
            into = self._totals[0][row, signals.start : signals.stop]
            if combine == "sum":
                into.add_(found)
            else:
                torch.maximum(into, found, out=into)
            self._counts[0][row, signals.start : signals.stop] += elements
        for i in self._dead:
            self._counts[0][row, i] = 0

    def _of_blocks(self, i: int) -> Tensor:
        values = self.blocks.values
        if i not in self._dead:
            try:
                found = self.signals[i].of_blocks(self.blocks)
                if found.shape == values.shape[:1]:
                    return found.to(self._dtype)
                raise ValueError(f"of_blocks gave {list(found.shape)}, not [{len(values)}]")
            except Exception as error:
                self._drop(i, error)
        return values.new_zeros(len(values), dtype=self._dtype)

    def _drop(self, i: int, error: Exception) -> None:
        self._dead.add(i)
        self._failed(self.signals[i].name, error)

    def _count(self, present: Presence) -> NDArray[np.float64]:
        """[layers] elements; the same few patterns come again at every step."""
        if present not in self._elements:
            if len(self._elements) > 64:
                self._elements.clear()
            numel = np.where(present, self._numel, 0.0)
            layers = self._totals[0].shape[2]
            elements = np.bincount(self._layer, numel, minlength=layers)
            self._elements[present] = elements.astype(np.float64)
        return self._elements[present]

    def _of_all_ranks(self, totals: Tensor) -> Tensor:
        """One collective for the rows of a whole interval."""
        world = torch.distributed.get_world_size()
        parts = [torch.empty_like(totals) for _ in range(world)]
        torch.distributed.all_gather(parts, totals.contiguous())
        ranks = torch.stack(parts)
        whole = torch.empty_like(totals)
        for (_, combine), s in self._groups.items():
            part = ranks[:, :, s.start : s.stop]
            whole[:, s.start : s.stop] = part.sum(0) if combine == "sum" else part.amax(0)
        return whole


def _grouped(signals: Sequence[LayerSignal]) -> dict[tuple[Moment, str], range]:
    """Neighbours that read the same and combine alike, measured together."""
    groups: dict[tuple[Moment, str], range] = {}
    for i, signal in enumerate(signals):
        key = signal.reads, signal.combine
        groups[key] = range(groups[key].start if key in groups else i, i + 1)
    return groups
