"""What training needs of torch.distributed; a single process needs no process group.

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them, are the one way
in. Shapes: B rows of this process, N of all processes, D columns.
"""

import os
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stabkit.config import ConfigError
from stabkit.monitor.ranks import active, rank, world_size

FAREWELL = 2.0  # seconds that the first process waits for the others after an error
BUCKET_BYTES = 25 * 2**20  # of gradients in one reduction; DDP's choice too


@contextmanager
def process_group(cuda: bool) -> Iterator[None]:
    """Join the processes that the environment names.

    Does nothing for a single process, or if the caller has joined already; the caller's group must
    be able to reduce CPU tensors too. Raises ConfigError when the environment is incomplete.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1" or active():
        yield
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        problem = (
            f"WORLD_SIZE={world} announces several processes, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start with torchrun, or unset "
            "WORLD_SIZE for a single process"
        )
        raise ConfigError("environment variables", [problem])
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    except BaseException as error:
        _leave_after(error, cuda)
        raise
    dist.destroy_process_group()


def _leave_after(error: BaseException, cuda: bool) -> None:
    """Frees the others from their wait. The first stays a moment: they ask its store why."""
    store, first, world = dist.distributed_c10d._get_default_store(), rank() == 0, world_size()
    try:
        left = store.add("stabkit/left", 1)
        # NCCL's teardown may itself wait for the others; the end of the process does not. Gloo's
        # connections close with the last reference, which frames of the failed reduction hold.
        if not cuda:
            dist.destroy_process_group()
            for part in (error, error.__cause__):
                traceback.clear_frames(part.__traceback__ if part else None)
        until = time.monotonic() + FAREWELL
        while first and left < world and time.monotonic() < until:
            time.sleep(0.02)
            left = store.add("stabkit/left", 0)
    except RuntimeError:  # the store is gone with the process that held it
        pass


def local_rank() -> int:
    """Number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def own_rows(batch: int) -> slice:
    """This process's part of a global batch: equal parts, contiguous, in rank order.

    Raises ValueError where there are none.
    """
    processes = world_size()
    if batch % processes:
        raise ValueError(
            f"train.batch {batch} is not divisible by the number of processes, {processes}: each "
            "takes an equal part of a batch"
        )
    rows = batch // processes
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(tensor_BD: Tensor) -> Tensor:
    """[N, D]: every process's rows in rank order, without gradient."""
    if not active():
        return tensor_BD.detach()
    own = tensor_BD.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def gather_with_gradient(tensor_BD: Tensor) -> Tensor:
    """[N, D] in rank order; a row's gradient is the sum of what every process asks of it.

    With gradients averaged over the processes after that, as `GradientReduction` does, mean losses
    of equal parts give the gradient of their common mean.
    """
    if not active():
        return tensor_BD
    gathered: Tensor = _Gather.apply(tensor_BD)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_BD: Tensor) -> Tensor:
        ctx.rows = len(tensor_BD)
        return gather(tensor_BD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = rank() * ctx.rows
        return total[first : first + ctx.rows]


def mean_of_processes(value: Tensor) -> Tensor:
    """Without gradient; `value` itself where there is one process."""
    if not active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class GradientReduction:
    """Turns every gradient into its mean over the processes; nothing to do for a single one.

    Buckets of neighbouring parameters are reduced from the last to the first, as backward reaches
    them. They are cut once and for all, so that the same step always sums in the same order. DDP's
    are not: after its first iteration it sorts them anew, and a resumed run of three processes
    would differ from an unbroken one by rounding. What has no gradient must have none on all.
    """

    def __init__(self, parameters: Iterable[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
        self._buckets = _buckets(parameters, bucket_bytes) if active() else []
        self._begin()

    def _begin(self) -> None:
        self._next = 0  # bucket
        self._missing = [len(bucket) for bucket in self._buckets]
        self._pending: list[tuple[dist.Work, Tensor]] = []

    def overlap(self) -> None:
        """From now on a bucket's reduction begins in backward: one backward a `finish`, on all."""
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                register = parameter.register_post_accumulate_grad_hook
                register(partial(self._arrived, number))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def finish(self) -> None:
        """After backward: reduce what is left, and wait for all of it."""
        while self._next < len(self._buckets):
            self._reduce_next()
        for work, flat in self._pending:
            work.wait()
            flat /= dist.get_world_size()
        self._begin()

    def _arrived(self, number: int, _: Tensor) -> None:
        self._missing[number] -= 1
        # only one after the other: the order must be the same on all processes
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._reduce_next()

    def _reduce_next(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        grads = [p.grad for p in bucket if p.grad is not None]
        if not grads:
            return
        # as they lie in memory: channels-last ones too are dense, and optimizers want them alike
        flat = torch.cat([grad.as_strided((grad.numel(),), (1,)) for grad in grads])
        parts = iter(torch.split(flat, [grad.numel() for grad in grads]))
        for parameter in bucket:
            if parameter.grad is not None:  # now a view, reduced in place: nothing is copied back
                parameter.grad = next(parts).as_strided(parameter.shape, parameter.grad.stride())
        self._pending.append((dist.all_reduce(flat, async_op=True), flat))


def _buckets(parameters: Iterable[Tensor], limit: int) -> list[list[Tensor]]:
    """Trained parameters, from the last bucket to the first; each in order, of one dtype."""
    buckets: list[list[Tensor]] = []
    room = 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        room -= parameter.nbytes
        if not buckets or room < 0 or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = limit - parameter.nbytes
        buckets[-1].insert(0, parameter)
    return buckets


class Agreement:
    """Whether any process has raised a flag, without anyone waiting: the answer is one call late.

    Reductions run on the host in the background, in a group of their own. Make one on every process
    at the same time, and `ask` it equally often.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if active():
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._flag = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def ask(self, flag: bool) -> bool:
        """Whether any process had `flag` at the call before, the same on all; False at first.

        A single process gets its own flag back at once.
        """
        if self._group is None:
            return flag
        answer = self._answer()
        self._flag = torch.tensor(int(flag))
        self._work = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return answer

    def _answer(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()  # for a process that is a whole step behind; else it is long done
        return bool(self._flag.item())
