"""Start several processes as torchrun would: shared by the tests that need them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

# Processes are forked from a server that has imported torch: it saves seconds for each.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "stabkit.train.loop",
        "torch._dynamo",
        "tests.conftest",
        "stabkit.branch.study",
        "stabkit.branch.judge.branch_figures",
    ]
)
PATIENCE = 300.0  # seconds for what takes one or two; only a hang lasts so long


def start(count: int, act: Callable[..., Any], *args: Any) -> list[BaseProcess]:
    """Start `count` processes, each of which runs `act(*args)` in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = CONTEXT.Process(target=_within, args=(environment, act, args))
        process.start()
        started.append(process)
    return started


def exit_codes(started: list[BaseProcess]) -> list[int | None]:
    for process in started:
        process.join(PATIENCE)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert None not in codes, f"still running: {codes}"
    return codes


def results(count: int, folder: Path, act: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `act(*args)` gives in each of `count` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    assert exit_codes(start(count, _saved, folder, act, args)) == [0] * count
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _saved(folder: Path, act: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.save(act(*args), folder / f"{os.environ['RANK']}.pt")


def _within(environment: dict[str, Any], act: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    act(*args)
