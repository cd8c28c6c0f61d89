"""Let all processes of a run go on together or fail together.

In a single process each of these functions simply runs what it is given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from stabkit.monitor.ranks import active, rank, world_size
from stabkit.train.parallel.reduce import gather
from stabkit.train.refusals import NOT_STARTED

T = TypeVar("T")

# The request was wrong: no run has failed, and its folder stays as it is.


class PeerError(RuntimeError):
    """Another process of this run failed, and this one ends with it."""


class PeerRefusedError(PeerError):
    """Another process of this run found that the request is wrong."""


def run_together(act: Callable[[], T]) -> T:
    """Return `act()` of this process; when it raises in one process, all processes raise.

    The first process that failed raises its own error; the others raise PeerError, or
    PeerRefusedError when that error is a refusal. So none waits forever for another. `act` must not
    communicate with the other processes itself.
    """
    if not active():
        return act()
    result, error = None, None
    try:
        result = act()
    except Exception as caught:
        error = caught
    reports: list[tuple[str, bool] | None] = [None] * dist.get_world_size()
    refused = isinstance(error, NOT_STARTED)
    dist.all_gather_object(reports, (_report(error), refused) if error else None)
    failed = [number for number, report in enumerate(reports) if report is not None]
    if error is not None and failed[0] == rank():
        raise error
    if failed:
        message, refused = reports[failed[0]]  # type: ignore[misc]
        raise (PeerRefusedError if refused else PeerError)(message) from error
    return result  # type: ignore[return-value]


def run_by_first(act: Callable[[], T]) -> T:
    """Run `act` in the first process alone, and return its result, which is small, in all.

    Errors are raised as in `run_together`.
    """
    own = run_together(lambda: act() if rank() == 0 else None)
    if active():
        box = [own]
        dist.broadcast_object_list(box, src=0)
        own = box[0]
    return own  # type: ignore[return-value]


def run_first_then_others(act: Callable[[], T]) -> T:
    """Return `act()` of this process; the others run it after the first, and find its files.

    Errors are raised as in `run_together`.
    """
    done = run_together(lambda: act() if rank() == 0 else None)
    others = run_together(lambda: act() if rank() != 0 else None)
    return done if rank() == 0 else others  # type: ignore[return-value]


@contextmanager
def fail_together() -> Iterator[None]:
    """Turn an error of one process into a PeerError with its message in the others.

    They notice when their connection to it breaks; with NCCL, when the launcher ends them.
    """
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if not active():
            raise
        theirs = _exchange_report(_report(error))
        if theirs is None:
            raise
        raise PeerError(theirs) from error


def check_same_start(model: nn.Module, step: int) -> None:
    """Raise ValueError when a process starts from another step or other weights than the first."""
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


def _exchange_report(report: str) -> str | None:
    """Put `report` into the shared store; if another process did so before, return its report."""
    store = dist.distributed_c10d._get_default_store()
    try:
        first = store.compare_set("stabkit/failure", "", report).decode()
    except RuntimeError:  # the store is gone with the process that held it
        return None
    return None if first == report else first
