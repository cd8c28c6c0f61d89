"""Compare our MoCo v3 step with the hand-written one; show where time and memory go."""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.measurements import Measurement, open_part, options
from benchmarks.lib.results import paired, row_cells
from benchmarks.speed import step
from benchmarks.speed.stages import WAITING, stage_seconds

COLUMNS = ("size, precision", "what", "ours", "peer's", "ratio (95 %)", "goal", "met")
PLAN = (("vits", "bf16"), ("cifar", "bf16"), ("vitb", "bf16"), ("cifar", "fp32"))
REHEARSAL = (("tiny", "fp32"),)
VIEWS_GOAL, WAITING_GOAL = 0.05, 0.01
EVALUATIONS = ("held-out kNN, features", "held-out kNN, search and vote", "kNN bank, free")
BF16_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}  # dense peak


def main() -> None:
    given = options(__doc__).parse_args()
    part = open_part("step", given, COLUMNS)
    ends = time.monotonic() + given.seconds
    for size, precision in REHEARSAL if given.quick else PLAN:
        for what, measure in (("beside", beside), ("stages", stages), ("memory", memory)):
            name = f"{size} {precision} {what}"
            if part.has(name):
                continue
            if time.monotonic() > ends - 30:
                raise SystemExit(f"out of time before {name}")
            try:
                found = measure(given, size, precision)
            except Exception as error:  # one size that does not fit must not end the others
                said = f"NOT VALID: {type(error).__name__}: {error}"
                found = Measurement([[f"{size}, {precision}", what, said]], failed=True)
            part.add(name, found)
    part.finish()


def subject(given: argparse.Namespace, size: str, precision: str) -> argparse.Namespace:
    """Return the arguments that the functions of step.py take."""
    words = (f"compute.precision={precision}",)
    return argparse.Namespace(device=given.device, size=size, threads=1, words=words)


def beside(given: argparse.Namespace, size: str, precision: str) -> Measurement:
    """Time both sides in turns, each in its own process."""
    about = subject(given, size, precision)
    pairs, steps = (2, 1) if given.quick else (10, 10)
    lines, values = [], {}
    for peer, tuned in (("hand-written loop", False), ("the same, tuned", True)):
        with (
            step.apart(step.make_ours, about) as ours,
            step.apart(step.make_handwritten, about, tuned) as hand,
        ):
            times = paired(partial(ours, steps), partial(hand, steps), pairs)
        row = times.row("step", peer, "at least", 1.0, items=steps, unit="steps/s")
        cells = [f"{row.value:.3g} steps/s", f"{row.peer_value:.3g} steps/s"]
        lines.append(
            [f"{size}, {precision}", f"step beside {peer}", *cells, *split(row_cells(row))]
        )
        values[peer] = {"ours_s": list(times.ours), "peer_s": list(times.peer)}
    return Measurement(lines, values=values)


def split(cells: str) -> list[str]:
    return [cell.strip() for cell in cells.split("|")]


def stages(given: argparse.Namespace, size: str, precision: str) -> Measurement:
    """Time the stages of the real loop. Waiting for the device at each end costs some overlap."""
    config = step.config_for(subject(given, size, precision))
    steps = 10 if given.quick else 2 * config.knn.every
    found = stage_seconds(config, steps)
    total = sum(found.values())
    lines = []
    evaluations = sum(found[name] for name in EVALUATIONS)
    shares = {"views": found["views"], "waiting for data": found[WAITING]}
    goals = {"views": VIEWS_GOAL, "waiting for data": WAITING_GOAL}
    for what, seconds in (shares | {"evaluations": evaluations}).items():
        goal = goals.get(what)
        met = "" if goal is None else ("yes" if seconds / total <= goal else "**no**")
        asked = "" if goal is None else f"at most {goal:g}"
        cells = [f"{1000 * seconds / steps:.2f} ms a step", f"{1000 * total / steps:.2f} ms"]
        lines.append([f"{size}, {precision}", f"{what}, share of the run", *cells,
                      f"{seconds / total:.3f}", asked, met])  # fmt: skip
    table = [f"Stages at {size}, {precision}, {steps} steps, ms a step: "]
    table += [f"{name} {1000 * s / steps:.2f};" for name, s in found.items() if s / total > 0.002]
    return Measurement(lines, [" ".join(table)], {"steps": steps, "seconds": found})


def memory(given: argparse.Namespace, size: str, precision: str) -> Measurement:
    """Measure peak memory, and floating-point operations a second beside the device's peak."""
    about = subject(given, size, precision)
    cuda = given.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        ours = step.Ours(step.config_for(about), Path(folder))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = paired(ours, lambda: None, 3 if given.quick else 20, device=ours.device)
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        with FlopCounterMode(display=False) as counter:
            ours()
        ours.monitor.close()
    seconds = statistics.median(times.ours)
    teraflops = counter.get_total_flops() / seconds / 1e12
    name = torch.cuda.get_device_name() if cuda else "CPU"
    limit = next((t for part, t in BF16_TFLOPS.items() if part in name), None)
    values = {"step_s": list(times.ours), "peak_gib": peak,
              "flops_a_step": counter.get_total_flops()}  # fmt: skip
    share = "" if limit is None or precision != "bf16" else f"{teraflops / limit:.3f}"
    what = [f"{size}, {precision}"]
    gib = "not measured" if peak is None else f"{peak:.1f} GiB"
    lines = [
        [*what, "peak memory", gib],
        [*what, "model FLOPs, ours over the device's dense bf16 peak", f"{teraflops:.3g} TFLOP/s",
         "" if limit is None else f"{limit} TFLOP/s", share],
    ]  # fmt: skip
    return Measurement(lines, values=values)


if __name__ == "__main__":
    main()
