"""Run one process of `distributed.py`: make the steps that it asks for, and time them."""

import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stabkit.config import (
    ComputeConfig,
    RunConfig,
    RuntimeConfig,
    read_base,
    validate,
    with_settings,
)
from stabkit.config.schedule import lr_at, momentum_at
from stabkit.monitor.ranks import active
from stabkit.train.data.batches import Batch
from stabkit.train.device import prepare_device
from stabkit.train.loop import train_step
from stabkit.train.parallel.reduce import average_gradients, own_rows, process_group
from stabkit.train.recording import Silent
from stabkit.train.state import TrainState, build_state

CLASSES = 10
IMAGES = 5000

STAGES = {
    "_Normalize.forward": "BN forward",
    "_Normalize.backward": "BN backward",
    "gather": "keys and features",
    "mean_of_processes": "mean loss",
}

Step = Callable[[], object]  # makes the next step and counts it, since every fifth does kNN


class Stage(NamedTuple):
    """Per step: calls, seconds until all processes are there, seconds of communication."""

    calls: float
    waiting: float
    talking: float


@dataclass(frozen=True)
class Model:
    """The `tiny` preset with `settings`, and the images per process on a CPU and on a GPU."""

    settings: dict[str, Any]
    batch: dict[str, int]


MODELS = {
    "tiny": Model({}, {"cpu": 64, "cuda": 512}),
    "larger": Model(
        {"model.width": 192, "model.depth": 6, "method.hidden": 1024},
        {"cpu": 64, "cuda": 512},
    ),
}


@dataclass(frozen=True)
class Ask:
    """Ask for `steps` steps of a side (of SIDES, or `profile`) on `batch` images in all."""

    model: str
    side: str
    batch: int
    steps: int


def work(
    pipe: Connection, rank: int, world: int, gpu: int, port: int, device: str, threads: int
) -> None:
    """Answer every `Ask` with seconds per step, `profile` with stages. End at None."""
    cuda = device.startswith("cuda")
    names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    if cuda:
        torch.cuda.set_device(gpu)
    with process_group(cuda):
        place = prepare_device(RuntimeConfig(device=device, threads=threads), ComputeConfig())
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
    for _ in range(steps):
        step()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def configured(name: str, batch: int) -> RunConfig:
    settings = MODELS[name].settings | {"train.batch": batch}
    return validate(RunConfig, with_settings(read_base("tiny"), settings), "benchmark")


def prepared(name: str, batch: int, device: torch.device) -> tuple[RunConfig, TrainState, Batch]:
    config = configured(name, batch)
    state = build_state(config, IMAGES, device, CLASSES)
    size, own = config.data.image_size, own_rows(batch)
    random = torch.Generator().manual_seed(0)
    views = torch.randn(2, batch, 3, size, size, generator=random)[:, own].to(device)
    labels = torch.randint(0, CLASSES, (batch,), generator=random).to(device)
    return config, state, Batch(*views, labels, torch.arange(batch, device=device), own)


def ours(name: str, batch: int, device: torch.device) -> Step:
    config, state, made = prepared(name, batch, device)
    return trained(config, replace(state, network=average_gradients(state.model)), made)


def trained(config: RunConfig, state: TrainState, made: Batch) -> Step:
    recorder, numbers = Silent(), count()
    return lambda: train_step(config, state, recorder, made, next(numbers), CLASSES)


def ddp(name: str, batch: int, device: torch.device) -> Step:
    """Make the same model, loss, schedules and optimizer, as written with torch alone."""
    config, state, made = prepared(name, batch, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a newer name
        wrapped = DistributedDataParallel(
            state.model, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True
        )
    return unrecorded(config, state, made, wrapped)


def plain(name: str, batch: int, device: torch.device) -> Step:
    """Do what `ddp` does, with the module of a training's step."""
    config, state, made = prepared(name, batch, device)
    return unrecorded(config, state, made, average_gradients(state.model))


def unrecorded(config: RunConfig, state: TrainState, made: Batch, model: nn.Module) -> Step:
    labels, numbers = made.labels[made.own], count()

    def step() -> None:
        number = next(numbers)
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(number, config.train.steps, config.optim, config.train.batch)
        momentum = momentum_at(number, config.train.steps, config.method)
        loss = model(made.view1, made.view2, labels, momentum, number)[0]
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()

    return step


SIDES: dict[str, Callable[[str, int, torch.device], Step]] = {
    "ours": ours,
    "plain": plain,
    "ddp": ddp,
}


def stages(step: Step, steps: int, cuda: bool) -> dict[str, Stage]:
    """By the function that talks to the other processes.

    They meet before each call, which shows what is waiting for the slower one and what is talk. And
    each call is waited for: nothing overlaps.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}

    def met(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            dist.barrier()
            together = time.perf_counter()
            work = original(*args, **kwargs)
            if work is not None:
                work.wait()
            if cuda:
                torch.cuda.synchronize()
            name = sys._getframe(1).f_code.co_qualname
            times = together - began, time.perf_counter() - together
            found[STAGES.get(name, name)].append(times)
            return work

        return call

    for name, original in originals.items():
        setattr(dist, name, met(original))
    try:
        for _ in range(steps):
            step()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return {
        name: Stage(len(times) / steps, *(sum(part) / steps for part in zip(*times, strict=True)))
        for name, times in found.items()
    }
