"""Measure cells an hour with 1, 2, 4 and 8 runs at once on one GPU, for tiny and cifar."""

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.measurements import Measurement, Part, open_part, options
from benchmarks.lib.results import Times, row_cells
from benchmarks.speed.grid import check_equal, of_seed, sweep

COLUMNS = ("preset", "runs at once", "cells an hour", "one by one", "ratio (95 %)", "goal", "met")
COUNTS = (1, 2, 4, 8)
PROMISED, GOAL = 4, 2.0
CELLS, TURNS = 8, 2
EMBEDDED = ("data.path=null", "data.name=synthetic")
SETTINGS = {
    "tiny": ("train.steps=150", "optim.warmup_steps=10"),
    "cifar": (*EMBEDDED, "train.steps=100", "optim.warmup_steps=10", "compute.precision=bf16"),
}
QUICK_SETTINGS = ("train.steps=4", "optim.warmup_steps=2", "knn.every=4")


def main() -> None:
    given = options(__doc__).parse_args()
    part = open_part("grids", given, COLUMNS)
    ends = time.monotonic() + given.seconds
    one_gpu()
    presets, counts, turns = (("tiny",), (1, 2), 1) if given.quick else (SETTINGS, COUNTS, TURNS)
    for turn in range(turns):
        for preset in presets:
            if len(part.values(preset).get("turns", [])) > turn:
                continue
            if time.monotonic() > ends - 60:
                raise SystemExit(f"out of time before turn {turn + 1} of {preset}")
            measure_turn(part, preset, counts, given)
    part.finish()


def one_gpu() -> None:
    """Show only the first GPU, since the launcher uses every GPU that it sees."""
    if first := os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]:
        os.environ["CUDA_VISIBLE_DEVICES"] = first


def measure_turn(
    part: Part, preset: str, counts: tuple[int, ...], given: argparse.Namespace
) -> None:
    turns = part.values(preset).get("turns", [])
    cells = 2 if given.quick else CELLS
    settings = QUICK_SETTINGS if given.quick else SETTINGS[preset]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts if len(turns) % 2 else counts[::-1]:
            at = Path(folder) / str(count)
            words = [*settings, f"runtime.device={given.device}", f"runtime.runs_per_gpu={count}"]
            seconds[str(count)] = sweep(at, words, cells, preset)[0] / cells
        for count in counts[1:]:
            for seed in range(cells):
                packed, alone = (Path(folder) / str(n) / "grid" for n in (count, 1))
                check_equal(of_seed(packed, seed), of_seed(alone, seed))
    part.add(preset, described(preset, counts, cells, [*turns, seconds]))


def described(
    preset: str, counts: tuple[int, ...], cells: int, turns: list[dict[str, float]]
) -> Measurement:
    lines = []
    alone = [turn["1"] for turn in turns]
    for count in counts[1:]:
        goal = GOAL if count == PROMISED else None
        times = Times([turn[str(count)] for turn in turns], alone)
        row = times.row("", "", "at least", goal, items=3600, unit="cells/h")
        rates = [f"{row.value:.0f}", f"{row.peer_value:.0f}"]
        cells_of_row = [cell.strip() for cell in row_cells(row).split("|")]
        lines.append([preset, str(count), *rates, *cells_of_row])
    note = (
        f"{preset}: {cells} cells, {len(turns)} turns, starts included. Tables and last "
        "checkpoints of packed runs equal those of the runs one by one, bit for bit."
    )
    return Measurement(lines, [note], {"turns": turns})


if __name__ == "__main__":
    main()
