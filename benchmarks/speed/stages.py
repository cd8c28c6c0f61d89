"""Show where the time of a training goes, by stages of the real loop."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.results import Row
from benchmarks.lib.timing import Interval
from stabkit.config import RunConfig
from stabkit.monitor.monitor import Monitor
from stabkit.rundir import RunDir
from stabkit.train import heldout_knn as evaluate
from stabkit.train import loop
from stabkit.train.data.batches import ReadAhead
from stabkit.train.knn_bank import KnnBank
from stabkit.train.methods.heads import Online, Twin

WAITING = "waiting for the batch to be read"
STAGES: tuple[tuple[Any, str, str], ...] = (
    (ReadAhead, "take", WAITING),
    (loop, "make_batch", "views"),
    (Online, "forward", "online network, forward"),
    (Twin, "forward", "momentum encoder, forward"),
    (Twin, "follow", "momentum encoder, update"),
    (torch.Tensor, "backward", "backward"),
    (loop, "scaled_step", "optimizer, and the Monitor's signals"),
    (Monitor, "log", "scalars recorded"),
    (Monitor, "log_eval", "scalars recorded"),
    (loop, "feature_std", "spread and rank of features"),
    (loop, "effective_rank", "spread and rank of features"),
    (KnnBank, "add", "kNN bank, free"),
    (KnnBank, "predict", "kNN bank, free"),
    (evaluate, "encode", "held-out kNN, features"),
    (evaluate, "knn_predict", "held-out kNN, search and vote"),
    (loop, "checkpoint", "rows and checkpoints written"),
    (loop.Progress, "evaluated", "dips looked for; at first also imported"),
    (loop.Progress, "report", "status written"),
    (loop, "train_step", "the rest of the step"),
    (loop, "_steps", "the rest of the loop"),
)


class Stopwatch:
    """The time in each stage without the stages inside it."""

    def __init__(self, cuda: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda, self._inside = cuda, [0.0]

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = self._now()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = self._now() - began
                self.seconds[stage] += whole - self._inside.pop()
                self._inside[-1] += whole

        return run

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def _timing(watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, stage in STAGES:
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, watch.timed(original, stage))
        yield


def stage_seconds(config: RunConfig, steps: int) -> dict[str, float]:
    """Return the seconds of a training of `steps` steps by stage, in the order of STAGES."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    watch = Stopwatch(config.runtime.device.startswith("cuda"))
    with tempfile.TemporaryDirectory() as folder, _timing(watch):
        loop.train(config, RunDir(Path(folder)))
    return {stage: watch.seconds[stage] for stage in dict.fromkeys(stage for *_, stage in STAGES)}


def stages(config: RunConfig, steps: int) -> tuple[str, Row]:
    """Return a table of the stages in ms per step, and the share that waits for data."""
    found = stage_seconds(config, steps)
    total = sum(found.values())
    every = config.knn.every
    lines = [
        f"Where the time of a run goes ({steps} steps, held-out kNN every {every}; time in a stage "
        "without that of the stages inside it):",
        "",
        "| stage | ms a step | share |",
        "| --- | --- | --- |",
    ]
    for stage, seconds in found.items():
        lines.append(f"| {stage} | {1000 * seconds / steps:.2f} | {seconds / total:.1%} |")
    lines.append(f"| all | {1000 * total / steps:.2f} | |")
    waited = found[WAITING]
    share = waited / total
    row = Row(
        "waiting for data", "whole run", 1000 * waited / steps, 1000 * total / steps, "ms a step",
        Interval(share, share, share), "at most", 0.01, "never, within a hundredth",
    )  # fmt: skip
    return "\n".join(lines), row
