"""Measure what the Monitor and its peers add to a step of ViT-S/16 and ViT-B/16."""

import time

import torch

from benchmarks.gpu.measurements import Measurement, open_part, options
from benchmarks.overhead import run as monitor_overhead
from benchmarks.overhead.measure import Result, Size, measure
from benchmarks.overhead.subject import Unavailable

COLUMNS = (
    "model", "subject", "step, ms", "step, times (95 %)", "CPU, times (95 %)",
    "added, ms a step (95 %)", "added / step", "waits a step (most)", "values a step",
    "bytes a step",
)  # fmt: skip
LEVELS = tuple(monitor_overhead.FURTHER)
PEERS = ("lightning-csv", "wandb-gradients", "tensorboard")
PLAN = (  # the most valuable first
    *[(model, "stabkit") for model in ("vits", "vitb")],
    *[("vits", subject) for subject in (*LEVELS, *PEERS, "stabkit-grad_norm")],
)
REHEARSAL = (("mlp", "stabkit"), ("mlp", "tensorboard"), *[("tiny", level) for level in LEVELS])
BLOCKS = Size(every=50, pairs=10)  # 50 steps: one interval, and one probe
GOAL = 1.01


def main() -> None:
    given = options(__doc__).parse_args()
    part = open_part("monitor", given, COLUMNS)
    device = torch.device(given.device)
    ends = time.monotonic() + given.seconds
    size = monitor_overhead.QUICK if given.quick else BLOCKS
    for model, subject in REHEARSAL if given.quick else PLAN:
        name = f"{model} {subject}"
        if part.has(name):
            continue
        if time.monotonic() > ends - 20:
            raise SystemExit(f"out of time before {name}")
        part.add(name, measured(model, subject, device, size))
    part.finish()


def measured(model: str, subject: str, device: torch.device, size: Size) -> Measurement:
    try:
        found = measure(monitor_overhead.SUBJECTS[subject], model, device, None, size)
    except Unavailable as why:
        return Measurement([[model, subject, str(why)]])
    except Exception as error:  # a failing subject must not end the others
        said = f"NOT VALID: {type(error).__name__}: {error}"
        return Measurement([[model, subject, said]], failed=True)
    notes = [f"{model} {subject}: {met(found)}"] if subject == "stabkit" else []
    values = {"step_s": found.off, "ratio": found.ratio, "added_s": found.added}
    return Measurement([[model, *monitor_overhead.cells(subject, found)]], notes, values)


def met(found: Result) -> str:
    by_blocks, inside = found.ratio.middle, 1 + found.added.middle / found.off.middle
    said = ["met" if ratio <= GOAL else "NOT met" for ratio in (by_blocks, inside)]
    return (
        f"at most {GOAL} times the step: {by_blocks:.3f} by blocks ({said[0]}), "
        f"{inside:.3f} by the time inside its calls ({said[1]})."
    )


if __name__ == "__main__":
    main()
