"""Measure one subject: a training with it and the same training without it, in turns."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lib.timing import Interval, median_interval, timed_block
from benchmarks.lib.trainings import Training, build
from benchmarks.overhead.clock import Clock, Waits, timing_new_hooks
from benchmarks.overhead.subject import Subject


@dataclass(frozen=True)
class Size:
    every: int  # steps in a block and in an interval
    pairs: int  # pairs of blocks, after the one that is dropped


@dataclass(frozen=True)
class Result:
    """What was measured of one subject on one training; times in seconds per step."""

    off: Interval  # on a CPU its CPU time, as `added` is
    ratio: Interval
    cpu_ratio: Interval  # CPU time of all threads, which other work on the machine disturbs less
    added: Interval
    waits: list[int]  # per step, over one interval
    values: float  # per step, on disk
    written: float  # bytes per step


def plain_step(training: Training, subject: Subject) -> None:
    training.optimizer.zero_grad()
    for _ in range(subject.micro):
        (training.loss(training.step) / subject.micro).backward()
    training.optimizer.step()
    training.step += 1


def watched_step(training: Training, subject: Subject, clock: Clock) -> None:
    step = training.step
    training.optimizer.zero_grad()
    for _ in range(subject.micro):
        loss = subject.loss(step)
        with clock:
            around = subject.backward(loss, step)
            around.__enter__()
        (loss / subject.micro).backward()
        with clock:
            around.__exit__(None, None, None)
            subject.after_micro_batch()
    with clock:
        subject.after_backward(loss, step)
    training.optimizer.step()
    with clock:
        subject.after_step(loss, step)
    training.step += 1


def measure(
    kind: type[Subject], model: str, device: torch.device, batch: int | None, size: Size
) -> Result:
    """Raise Unavailable, or RuntimeError if it was not attached or recorded too little."""
    off, on = build(model, device, batch), build(model, device, batch)
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        subject = kind(on, Path(folder) / "run", size.every)
        try:
            with timing_new_hooks(clock, on.model, on.optimizer) as hooks:
                subject.attach()
            if kind.hooked and not hooks[0]:
                raise RuntimeError("it put no hook on the model or the optimizer")
            intervals = [
                median_interval(found) for found in in_turns(off, on, subject, clock, size)
            ]
            waits = count_waits(on, subject, clock, size.every)
            for _ in range(size.every):
                plain_step(off, subject)
        except BaseException:
            with suppress(Exception):
                subject.close()
            raise
        subject.close()
        expected, recorded = subject.expected(on.step), subject.recorded()
        if recorded != expected:
            raise RuntimeError(f"it recorded {recorded} values where {expected} were expected")
        if device.type == "cpu" and not same_weights(
            off, on
        ):  # on a GPU the order of sums is not fixed
            raise RuntimeError("the training ended with other weights than without it")
        return Result(*intervals, waits, subject.values() / on.step, subject.written() / on.step)


def in_turns(
    off: Training, on: Training, subject: Subject, clock: Clock, size: Size
) -> tuple[list[float], ...]:
    """Return four lists, one value a pair except the first: the times and ratios of a Result."""
    steps: dict[str, Callable[[], None]] = {
        "off": lambda: plain_step(off, subject),
        "on": lambda: watched_step(on, subject, clock),
    }
    offs, ratios, cpu_ratios, added = [], [], [], []
    for pair in range(size.pairs + 1):
        clock.reset()
        order = ("off", "on") if pair % 2 == 0 else ("on", "off")
        found = {which: timed_block(off.device, size.every, steps[which]) for which in order}
        if subject.hooked and clock.fired < size.every:
            raise RuntimeError(f"its hooks fired {clock.fired} times in {size.every} steps")
        if pair:
            (off_wall, off_cpu), (on_wall, on_cpu) = found["off"], found["on"]
            offs.append(off_wall if off.device.type == "cuda" else off_cpu)
            ratios.append(on_wall / off_wall)
            cpu_ratios.append(on_cpu / off_cpu)
            added.append(clock.added_seconds() / size.every)
    return offs, ratios, cpu_ratios, added


def count_waits(training: Training, subject: Subject, clock: Clock, steps: int) -> list[int]:
    counts = []
    for _ in range(steps):
        waits = Waits(clock)
        with waits.counting():
            watched_step(training, subject, clock)
        counts.append(waits.count)
    return counts


def same_weights(off: Training, on: Training) -> bool:
    pairs = zip(off.model.parameters(), on.model.parameters(), strict=True)
    return all(bool((p == q).all()) for p, q in pairs)
