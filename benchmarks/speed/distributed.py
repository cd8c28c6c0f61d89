"""Measure what a second process is worth, beside one process and DDP.

Workers stay alive and take turns; those that have no work wait at a pipe. Steps are `train_step` on
fixed random images, without a Monitor: other scripts measure data and recording.
"""

import argparse
import multiprocessing
import socket
import statistics
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.lib.results import Row, Times, parser, publish
from benchmarks.speed.distributed_worker import MODELS, Ask, Stage, work

STEPS = {"tiny": 5, "larger": 1}  # in a block; the bank's kNN runs every fifth step
PAIRS = {"tiny": 8, "larger": 4}
PROFILED = {"tiny": 10, "larger": 3}


class Crew:
    """Processes that work together: a group of `size`, or a single one."""

    def __init__(self, size: int, first: int, given: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            args = (theirs, rank, size, first + rank, port, given.device, given.threads)
            process = context.Process(target=work, args=args, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send(None)
            process.join(10)
            process.kill()

    def tell(self, ask: Ask) -> None:
        for pipe in self.pipes:
            pipe.send(ask)

    def answers(self) -> list[Any]:
        return [pipe.recv() for pipe in self.pipes]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", choices=MODELS, help="default: both; quick: tiny")
    given = options.parse_args()
    world = 2
    if given.device.startswith("cuda"):
        world = torch.cuda.device_count()
        if world < 2:
            options.error(f"--device cuda needs at least 2 GPUs, this machine shows {world}")
    names = given.models or (["tiny"] if given.quick else list(MODELS))
    rows: list[Row] = []
    notes: list[str] = []
    with ExitStack() as stack:
        alone = [stack.enter_context(Crew(1, rank, given)) for rank in range(world)]
        together = stack.enter_context(Crew(world, 0, given))
        for name in names:
            batch = MODELS[name].batch[torch.device(given.device).type]
            pairs = 3 if given.quick else PAIRS[name]
            times = measure(name, batch, pairs, alone, together)
            rows += compared(name, batch, world, times)
            profiled = 10 if given.quick else PROFILED[name]
            together.tell(Ask(name, "profile", batch * world, profiled))
            notes.append(profile(name, together.answers()[0], times["weak"]))
    publish(rows, given, notes=notes)


def measure(
    name: str, batch: int, pairs: int, alone: list[Crew], together: Crew
) -> dict[str, list[float]]:
    """Return the seconds of a step on each side by turns; the first turn is not counted."""
    world, steps = len(alone), STEPS[name]
    sides = {
        "one": (alone[:1], Ask(name, "ours", batch, steps)),
        "apart": (alone, Ask(name, "ours", batch, steps)),
        "weak": ([together], Ask(name, "ours", batch * world, steps)),
        "strong": ([together], Ask(name, "ours", batch, steps)),
        "plain": ([together], Ask(name, "plain", batch * world, steps)),
        "ddp": ([together], Ask(name, "ddp", batch * world, steps)),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for turn in range(pairs + 1):
        for side in order if turn % 2 else reversed(order):
            crews, ask = sides[side]
            for crew in crews:
                crew.tell(ask)
            seconds = [answer for crew in crews for answer in crew.answers()]
            if turn:
                # a group is as fast as its slowest; apart, each has its own rate
                found = max(seconds) if len(crews) == 1 else statistics.harmonic_mean(seconds)
                times[side].append(found)
    return times


def compared(name: str, batch: int, world: int, times: dict[str, list[float]]) -> list[Row]:
    one, total = times["one"], batch * world
    fair = [seconds / world for seconds in one]
    ideal = f"{world} x one process alone"

    def scaling(side: str, what: str, peer: list[float], of: str, items: int) -> Row:
        return Times(times[side], peer).row(
            f"{name}: {what}", of, "at least", items=items, unit="images/s"
        )

    return [
        scaling("apart", f"{world} processes apart, {batch} images each", one, ideal, total),
        scaling("weak", f"{world} together, {batch} images each", one, ideal, total),
        scaling("strong", f"{world} together, {batch} images in all", fair, ideal, batch),
        scaling("weak", f"{world} together, {batch} images each", times["apart"], "apart", total),
        Times(times["weak"], times["ddp"]).row(
            f"{name}: a step of {world} together", "DDP's, which records nothing", "at most", 1.0
        ),
        Times(times["plain"], times["ddp"]).row(
            f"{name}: the same, recording nothing either", "DDP's", "at most", 1.0
        ),
    ]


def profile(name: str, stages: dict[str, Stage], step: list[float]) -> str:
    whole = statistics.median(step)
    parts = [
        f"{what} {of.calls:.3g} calls, {1000 * of.talking:.2f} ms ({of.talking / whole:.1%}) after "
        f"{1000 * of.waiting:.2f} ms of waiting for the other"
        for what, of in sorted(stages.items(), key=lambda item: -item[1].talking)
    ]
    return (
        f"{name}, a step together takes {1000 * whole:.0f} ms. If the processes met before "
        f"each call, it would hold: {'; '.join(parts)}."
    )


if __name__ == "__main__":
    main()
