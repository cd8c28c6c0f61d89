"""What training uses of torch.distributed; a single process needs no process group.

The processes are found by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT alone, which
torchrun sets. Shapes: B rows of this process, N rows of all processes, D columns.
"""

import os
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stabkit.config import ConfigError
from stabkit.monitor.ranks import active, rank, world_size
from stabkit.train.parallel.nccl import pin_nccl
from stabkit.train.parallel.topology import announce_node

FAREWELL = 2.0  # seconds that the first process waits for the others after an error


@contextmanager
def process_group(cuda: bool) -> Iterator[None]:
    """Join the processes that the environment names.

    Does nothing for a single process. If the caller has joined already, the caller's group is used,
    with NCCL as the caller has set it; it must be able to reduce CPU tensors too. Raises
    ConfigError when the environment is incomplete.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1" or active():
        announce_node()
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
    if cuda:
        pin_nccl()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    announce_node()
    try:
        yield
    except BaseException as error:
        _leave_after(error, cuda)
        raise
    dist.destroy_process_group()


def _leave_after(error: BaseException, cuda: bool) -> None:
    """Free the others from their wait; the first stays a moment, since its store tells them why."""
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
    """Return the number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def own_rows(batch: int) -> slice:
    """Return this process's rows of a global batch: equal parts, contiguous, in rank order.

    Raises ValueError when the batch cannot be divided equally.
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
    """Return the rows of all processes [N, D], in rank order, without gradient."""
    if not active():
        return tensor_BD.detach()
    own = tensor_BD.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def gather_with_gradient(tensor_BD: Tensor) -> Tensor:
    """Return the rows of all processes [N, D]; a row's gradient is the sum over all processes.

    When gradients are averaged over the processes after that, as DDP does, mean losses of equal
    parts give the gradient of their common mean. `torch.distributed.nn.functional.all_gather` is
    deprecated, and sums the gradients of three processes in another order (relative difference
    1e-7), so it is not used.
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
    """Return the mean of `value` over the processes, without gradient."""
    if not active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average_gradients(model: nn.Module, bucket_mb: float = 25.0) -> nn.Module:
    """Return a module that computes as `model` and averages gradients over the processes.

    A single process gets `model` itself. Call this on all processes at the same time: the first
    one's weights are sent to the others. What has no gradient on any process keeps none.

    `find_unused_parameters` keeps DDP's buckets as they were cut at first. By default DDP sorts
    them anew after its first step, and a resumed run of three processes differs from the unbroken
    one by 3e-8. The price is a walk over the graph in each step: on two processes of one thread a
    step of `tiny` took 0.99 (quartiles 0.90 to 1.09) of the time with a hand-written reduction of
    fixed buckets, which was used before. torch warns once in each process that nothing was unused.
    """
    if not active():
        return model
    with warnings.catch_warnings():
        # `broadcast_buffers` has a newer name, which versions before 2.14 do not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            bucket_cap_mb=bucket_mb,
            broadcast_buffers=False,  # equal already: all compute them from the rows of all
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


class Agreement:
    """Tell all processes whether any of them raised a flag; the answer is one call late.

    So no process waits: reductions run on the host in the background, in a group of their own. Make
    one in every process at the same time, and `ask` equally often.
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
        """Return whether any process had `flag` at the previous call; False at the first call.

        All processes get the same answer. A single process gets its own flag back at once.
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
        self._work.wait()  # only waits for a process that is a whole step behind
        return bool(self._flag.item())
