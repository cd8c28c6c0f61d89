"""Measure what the Monitor adds to a training step, beside peers.

    python -m benchmarks.overhead.run                    # some minutes on two CPU cores
    python -m benchmarks.overhead.run --quick            # seconds; figures mean nothing
    python -m benchmarks.overhead.run --levels           # and each further level of signals
    python -m benchmarks.overhead.run --long             # memory over 100,000 steps
    python -m benchmarks.overhead.run --device cuda      # ViT-S/16, 256 images a step

Peers that are not installed are named and left out. `pip install -e '.[bench]'` installs them.

Two equal trainings, one with the subject and one without, take turns (off on, on off, ...) in
blocks of one interval. So each block holds one write of what is written once an interval, and one
probe. The ratio is the median over pairs of blocks without the first pair, with a 95 % interval of
order statistics. The step itself varies by more than what is added, so the time inside the
subject's calls and hooks is also measured directly, on a CPU as CPU time of the training's thread.
What a subject recorded is read back from disk and must have the expected number of values, and both
trainings must end with the same weights.
"""

import argparse
import datetime
import importlib.metadata
import logging
import os
import platform
import statistics

import torch

from benchmarks.lib.trainings import TRAININGS
from benchmarks.overhead.long import long_run
from benchmarks.overhead.measure import Result, Size, measure
from benchmarks.overhead.ours import FURTHER, STABKIT
from benchmarks.overhead.peers import PEERS
from benchmarks.overhead.subject import Subject, Unavailable

GOALS = {
    ("tiny", "cpu"): 1.03,
    ("vit", "cpu"): 1.05,
    ("gpt", "cpu"): 1.05,
    ("vits", "cuda"): 1.01,
    ("vitb", "cuda"): 1.01,
}  # limits, as a multiple of the step's time
LESS = 10  # the factor by which a peer must add more time

SIZES = {
    "tiny": Size(50, 6),
    "vit": Size(10, 6),
    "gpt": Size(10, 10),
    "vits": Size(5, 6),
    "vitb": Size(2, 6),
    "mlp": Size(50, 10),
}
GPU_SIZE, QUICK = Size(50, 10), Size(4, 2)


def main() -> None:
    given = arguments()
    device = torch.device(given.device)
    torch.set_num_threads(given.threads)
    logging.getLogger("trainscope").setLevel(logging.ERROR)
    print(circumstances(device, given.threads))
    if given.long:
        raise SystemExit(not long_run(2000 if given.quick else 100_000, device))
    failed = False
    for model in given.models:
        size = QUICK if given.quick else GPU_SIZE if device.type == "cuda" else SIZES[model]
        size = Size(given.every or size.every, given.pairs or size.pairs)
        results: dict[str, Result | str] = {}
        print(f"\n{model}: blocks of {size.every} steps, {size.pairs} pairs\n\n{HEAD}", flush=True)
        for name in given.subjects:
            try:
                results[name] = measure(SUBJECTS[name], model, device, given.batch, size)
            except Unavailable as why:
                results[name] = str(why)
            except Exception as error:  # whatever a peer raises, the others are still measured
                said = str(error).partition("\n")[0]
                kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
                results[name], failed = f"NOT VALID: {kind}{said}", True
            print(row(name, results[name]), flush=True)
        print("", *goals(model, device, results), sep="\n")
    raise SystemExit(failed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TRAININGS)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, help="default: stabkit, peers")
    parser.add_argument("--levels", action="store_true", help="each further level of signals too")
    parser.add_argument("--quick", action="store_true", help="seconds; figures mean nothing")
    parser.add_argument("--long", action="store_true", help="memory over 100,000 steps, no times")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--every", type=int, help="steps a block, and an interval")
    parser.add_argument("--pairs", type=int, help="of blocks")
    parser.add_argument("--batch", type=int, help="images a step")
    given = parser.parse_args()
    if given.models is None:
        given.models = ["vits"] if given.device.startswith("cuda") else ["tiny"]
    further = FURTHER if given.levels else {}
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    given.subjects = given.subjects or [*STABKIT, *further, *PEERS]
    return given


def circumstances(device: torch.device, threads: int) -> str:
    packages = ("torch", "timm", "stabkit", "lightning", "tensorboard", "wandb", "trainscope")
    packages += ("cockpit-for-pytorch", "backpack-for-pytorch")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    cuda = device.type == "cuda"
    where = (
        torch.cuda.get_device_name(device) if cuda else f"{threads} of {os.cpu_count()} CPU cores"
    )
    today = datetime.date.today().isoformat()
    return f"{today}, {where}, Python {platform.python_version()}, " + ", ".join(versions)


HEAD = (
    "| subject | step, ms | step, times (95 %) | CPU, times (95 %) | added, ms a step (95 %) "
    "| added / step | waits a step (most) | values a step | bytes a step |\n| --- |" + " --- |" * 8
)


def row(name: str, found: Result | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {found} |" + " |" * 8
    return "| " + " | ".join(cells(name, found)) + " |"


def cells(name: str, found: Result) -> list[str]:
    ratio, cpu, added = found.ratio, found.cpu_ratio, found.added
    return [
        name,
        f"{1e3 * found.off.middle:.2f}",
        f"{ratio.middle:.3f} ({ratio.low:.3f}..{ratio.high:.3f})",
        f"{cpu.middle:.3f} ({cpu.low:.3f}..{cpu.high:.3f})",
        f"{1e3 * added.middle:.3f} ({1e3 * added.low:.3f}..{1e3 * added.high:.3f})",
        f"{added.middle / found.off.middle:.2%}",
        f"{statistics.median_low(found.waits)} ({max(found.waits)})",
        f"{found.values:.0f}",
        f"{found.written:.0f}",
    ]


def goals(model: str, device: torch.device, results: dict[str, Result | str]) -> list[str]:
    """Say for each goal of the Monitor what was measured, and whether it is met or NOT met."""
    lines = []
    measured = {name: found for name, found in results.items() if isinstance(found, Result)}
    limit = GOALS.get((model, device.type))
    for ours in (name for name in STABKIT if name in measured):
        found = measured[ours]
        if limit is not None:
            by_blocks, inside = found.ratio.middle, 1 + found.added.middle / found.off.middle
            low, high = found.ratio.low, found.ratio.high
            sure = "" if high <= limit or low > limit else f", {low:.3f}..{high:.3f} holds both"
            lines.append(
                f"{ours}: at most {limit} times the step: {by_blocks:.3f} by blocks "
                f"({verdict(by_blocks <= limit)}{sure}), {inside:.3f} by the time inside its calls "
                f"({verdict(inside <= limit)})"
            )
        usual, most = statistics.median_low(found.waits), max(found.waits)
        lines.append(
            f"{ours}: no wait for the device in a step: {usual} ({verdict(usual == 0)}; "
            f"{most} in the step that ends an interval)"
        )
        for peer in (name for name in PEERS if name in measured):
            times = measured[peer].added.middle / found.added.middle
            said = f"{ours}: adds at least {LESS} times less than {peer}: {times:.1f} times"
            lines.append(f"{said} ({verdict(times >= LESS)})")
    return lines


def verdict(met: bool) -> str:
    return "met" if met else "NOT met"


SUBJECTS: dict[str, type[Subject]] = {**STABKIT, **FURTHER, **PEERS}

if __name__ == "__main__":
    main()
