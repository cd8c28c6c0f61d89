"""On which nodes the processes of a run are."""

import socket
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch.distributed as dist

from stabkit.monitor.ranks import active, rank, world_size

_KEY = "stabkit/node/"


def announce_node() -> None:
    """Tell the other processes on which node this one is. Every process calls it once."""
    if active():
        _store().set(f"{_KEY}{rank()}", socket.gethostname())


def topology() -> str | None:
    """Return nodes x processes, for example `2 x 8`; None for a single process.

    Waits for the processes that have not announced their node yet.
    """
    if not active():
        return None
    return in_words([_store().get(f"{_KEY}{i}").decode() for i in range(world_size())])


def in_words(nodes: Sequence[str]) -> str:
    """Return the topology of processes on these nodes, in rank order.

    Where nodes are not filled evenly, one after the other, the sizes of the groups are given: two
    nodes with three and one processes are `3+1`, and two that take turns `1+1+1+1 on 2 nodes`.
    """
    sizes = [len(list(group)) for _, group in groupby(nodes)]
    count = len(set(nodes))
    if len(set(sizes)) == 1 and len(sizes) == count:
        return f"{count} x {sizes[0]}"
    turns = f" on {count} nodes" if len(sizes) > count else ""
    return "+".join(map(str, sizes)) + turns


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
