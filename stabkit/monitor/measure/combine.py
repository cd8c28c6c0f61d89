"""Signals that combine in the same way, and their totals over all ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stabkit.monitor.ranks import world_size
from stabkit.monitor.signals.signal import LayerSignal


def alike(signals: Sequence[LayerSignal]) -> dict[str, range]:
    """Return the range of the signals that combine in each way; they are sorted by it."""
    sums = [i for i, signal in enumerate(signals) if signal.combine == "sum"]
    first = sums[0] if sums else len(signals)
    return {"max": range(first), "sum": range(first, len(signals))}


def of_all_ranks(totals: Tensor, combine_of: Mapping[str, range]) -> Tensor:
    """Combine the rows of all ranks, in one collective for a whole interval.

    `totals`: [rows, signals, units].
    """
    ranks = totals.new_empty(world_size(), *totals.shape)
    _all_gather(ranks.view(-1), totals.contiguous().view(-1))
    whole = torch.empty_like(totals)
    for combine, s in combine_of.items():
        part = ranks[:, :, s.start : s.stop]
        whole[:, s.start : s.stop] = part.sum(0) if combine == "sum" else part.amax(0)
    return whole


def _all_gather(into: Tensor, own: Tensor) -> None:
    """Call all_gather by its new name where there is one: torch 2.14 warns of the old one."""
    dist = torch.distributed
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(into, own)
