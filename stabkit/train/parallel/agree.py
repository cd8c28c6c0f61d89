"""All processes of a run go on together or fail together; a single process just does it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from stabkit.config import ConfigError
from stabkit.monitor.ranks import active, rank, world_size
from stabkit.rundir import ForeignFolderError, RunBusyError
from stabkit.train.exactness import InexactResumeError
from stabkit.train.parallel.reduce import gather

T = TypeVar("T")

# The request was wrong: no run has failed, and what is in its folder stays as it is.
REFUSALS = (ConfigError, ForeignFolderError, RunBusyError, InexactResumeError)


class PeerError(RuntimeError):
    """Another process of this run failed, and this one ends with it."""


class PeerRefusedError(PeerError):
    """Another process of this run found that the request is wrong."""


def agreed(act: Callable[[], T]) -> T:
    """`act()` of this process; when it raises on any of them, all raise, and none waits forever.

    The first process that failed raises its own error, the others PeerError, or PeerRefusedError
    when that error is a refusal. `act` must not talk to the other processes itself.
    """
    if not active():
        return act()
    result, error = None, None
    try:
        result = act()
    except Exception as caught:
        error = caught
    reports: list[tuple[str, bool] | None] = [None] * dist.get_world_size()
    refused = isinstance(error, REFUSALS)
    dist.all_gather_object(reports, (_report(error), refused) if error else None)
    failed = [number for number, report in enumerate(reports) if report is not None]
    if error is not None and failed[0] == rank():
        raise error
    if failed:
        told, refused = reports[failed[0]]  # type: ignore[misc]
        raise (PeerRefusedError if refused else PeerError)(told) from error
    return result  # type: ignore[return-value]


def of_first(act: Callable[[], T]) -> T:
    """What the first process makes of `act`, on all of them; errors as in `agreed`. Small data."""
    own = agreed(lambda: act() if rank() == 0 else None)
    if active():
        box = [own]
        dist.broadcast_object_list(box, src=0)
        own = box[0]
    return own  # type: ignore[return-value]


def first_alone(act: Callable[[], T]) -> T:
    """`act()` of every process, the others' after the first's: they find what it has put there."""
    done = agreed(lambda: act() if rank() == 0 else None)
    others = agreed(lambda: act() if rank() != 0 else None)
    return done if rank() == 0 else others  # type: ignore[return-value]


@contextmanager
def failing_together() -> Iterator[None]:
    """An error that one process meets alone becomes a PeerError with its message on the others.

    They notice when their connection to it breaks; with NCCL, when the launcher ends them.
    """
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if not active():
            raise
        told = _told_by_another(_report(error))
        if told is None:
            raise
        raise PeerError(told) from error


def check_same_start(model: nn.Module, step: int) -> None:
    """Raises ValueError when a process stands at another step or has other weights."""
    if not active():
        return
    named = {name: p.detach().double().sum() for name, p in model.state_dict().items()}
    sums = gather(torch.stack([*named.values(), next(iter(named.values())).new_tensor(step)])[None])
    differs = (sums != sums[0]) & ~(sums.isnan() & sums[0].isnan())
    if differs.any():
        number, column = divmod(int(differs.int().argmax()), differs.shape[1])
        what = [*named, "step"][column]
        raise ValueError(
            f"process {number} of {world_size()} starts from another {what} than process 0; all "
            "must see the same configuration, run folder and versions"
        )


def _report(error: Exception) -> str:
    return f"process {rank()} of {world_size()} failed: {type(error).__name__}: {error}"


def _told_by_another(report: str) -> str | None:
    """Leave `report` where the others look; if one of them did before, its report instead."""
    store = dist.distributed_c10d._get_default_store()
    try:
        first = store.compare_set("stabkit/failure", "", report).decode()
    except RuntimeError:  # gone with the process that held it
        return None
    return None if first == report else first
