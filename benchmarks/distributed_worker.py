"""One process of `distributed.py`: makes the steps that it is asked for, and times them."""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stabkit.config import RunConfig, RuntimeConfig, read_base, validate, with_settings
from stabkit.monitor.ranks import active
from stabkit.train.device import prepare_device
from stabkit.train.distributed import own_rows, process_group
from stabkit.train.loop import Batch, train_step
from stabkit.train.optim import lr_at, momentum_at
from stabkit.train.recording import Silent
from stabkit.train.state import State, build_state

CLASSES = 10
IMAGES = 5000

Step = Callable[[int], None]


@dataclass(frozen=True)
class Model:
    """A preset with `settings`; `batch` images a process, on a CPU and on a GPU."""

    settings: dict[str, Any]
    batch: dict[str, int]


MODELS = {
    "tiny": Model({}, {"cpu": 64, "cuda": 512}),
    "larger": Model(
        {"model.width": 192, "model.depth": 8, "method.hidden": 1024},
        {"cpu": 64, "cuda": 512},
    ),
}


@dataclass(frozen=True)
class Ask:
    """`steps` steps of a side (ours, ddp, profile) on `batch` images in all."""

    model: str
    side: str
    batch: int
    steps: int


def work(
    pipe: Connection, rank: int, world: int, gpu: int, port: int, device: str, threads: int
) -> None:
    """Answers every `Ask` with seconds a step, `profile` with its stages; ends at None."""
    cuda = device.startswith("cuda")
    names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    if cuda:
        torch.cuda.set_device(gpu)
    with process_group(cuda):
        place = prepare_device(RuntimeConfig(device=device, threads=threads))
        build = cache(lambda model, side, batch: SIDES[side](model, batch, place))
        while (ask := pipe.recv()) is not None:
            if ask.side == "profile":
                pipe.send(stages(build(ask.model, "ours", ask.batch), ask.steps, cuda))
            else:
                pipe.send(seconds(build(ask.model, ask.side, ask.batch), ask.steps, cuda))


def seconds(step: Step, steps: int, cuda: bool) -> float:
    if active():
        dist.barrier()
    began = time.perf_counter()
    for number in range(steps):
        step(number)
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def configured(name: str, batch: int) -> RunConfig:
    settings = MODELS[name].settings | {"train.batch": batch}
    return validate(RunConfig, with_settings(read_base("tiny"), settings), "benchmark")


def prepared(name: str, batch: int, device: torch.device) -> tuple[RunConfig, State, Batch]:
    config = configured(name, batch)
    state = build_state(config, IMAGES, device, CLASSES)
    size, own = config.data.image_size, own_rows(batch)
    random = torch.Generator().manual_seed(0)
    views = torch.randn(2, batch, 3, size, size, generator=random)[:, own].to(device)
    labels = torch.randint(0, CLASSES, (batch,), generator=random).to(device)
    return config, state, Batch(*views, labels, torch.arange(batch, device=device), own)


def ours(name: str, batch: int, device: torch.device) -> Step:
    config, state, made = prepared(name, batch, device)
    recorder = Silent()
    return lambda number: train_step(config, state, recorder, made, number, CLASSES)


def ddp(name: str, batch: int, device: torch.device) -> Step:
    """The same model, loss, schedules and optimizer, as one would write it with torch alone."""
    config, state, made = prepared(name, batch, device)
    wrapped = DistributedDataParallel(
        state.model, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True
    )
    labels = made.labels[made.own]

    def step(number: int) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(number, config.train.steps, config.optim, batch)
        momentum = momentum_at(number, config.train.steps, config.method)
        loss = wrapped(made.view1, made.view2, labels, momentum, number)[0]
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()

    return step


SIDES: dict[str, Callable[[str, int, torch.device], Step]] = {"ours": ours, "ddp": ddp}


def stages(step: Step, steps: int, cuda: bool) -> dict[str, tuple[float, float]]:
    """Calls and seconds a step, by the function that talks to the other processes.

    On a GPU each call is waited for, so that nothing overlaps: what it costs at most.
    """
    found: dict[str, list[float]] = defaultdict(list)
    with timed(dist, ("all_reduce", "all_gather"), found, cuda):
        for number in range(steps):
            step(number)
    return {name: (len(times) / steps, sum(times) / steps) for name, times in found.items()}


@contextmanager
def timed(
    module: Any, names: tuple[str, ...], found: dict[str, list[float]], cuda: bool
) -> Iterator[None]:
    originals = {name: getattr(module, name) for name in names}

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            result = original(*args, **kwargs)
            if cuda:
                torch.cuda.synchronize()
            found[stage(sys._getframe(1).f_code)].append(time.perf_counter() - began)
            return result

        return call

    for name, original in originals.items():
        setattr(module, name, around(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def stage(code: Any) -> str:
    return {
        "average_gradients": "gradients",
        "_Normalise.forward": "BN forward",
        "_Normalise.backward": "BN backward",
        "gather": "gathered keys and features",
        "mean_of_processes": "mean loss",
    }.get(code.co_qualname, code.co_qualname)
