"""Compare a grid on one machine with its cells one by one.

On the CPU it measures three things: cells per hour of the pool of `stabkit sweep`, over the number
of cores times the rate of one run alone; the most the machine allows (as many runs at once, without
the pool); and the parts of a cell's time. On a GPU (--device cuda) it compares several cells at
once with one by one. Every cell of a grid must equal the same run made alone, bit for bit.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

import stabkit
from benchmarks.lib.results import Row, Times, parser, publish
from stabkit.sweep.pool import visible_cpus

GOAL_CPU, GOAL_GPU = 0.95, 2.0
RUNS_PER_GPU = (2, 4, 8)
PROMISED = 4  # runs per GPU to which the goal applies
SETTINGS = ("optim.warmup_steps=10", "runtime.checkpoint_every=50")


class Cell(NamedTuple):
    """The seconds of a run: until its first step, then its steps and evaluations."""

    start: float
    work: float
    began: float  # times of its first and last step, in seconds since 1970
    ended: float


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = on_gpu if given.device.startswith("cuda") else on_cpu
        rows, notes = measure(given, Path(folder))
    publish(rows, given, notes=notes)


def on_cpu(given: Any, folder: Path) -> tuple[list[Row], list[str]]:
    slots = max(1, len(visible_cpus()) // given.threads)
    cells = (
        slots if given.quick else 2 * slots
    )  # a multiple of the cores, so that none is idle at the end
    steps, turns = (10, 1) if given.quick else (36, 2)
    settings = [f"runtime.threads={given.threads}", f"train.steps={steps}", *SETTINGS]
    alone_s, beside_s, pool_s, launcher_s = [], [], [], []
    alone_cpu, pool_cpu = [], []
    alone_cells, beside_cells, pool_cells = [], [], []
    for turn in range(turns):
        at = folder / str(turn)
        sides = [0, 1, 2] if turn % 2 else [2, 1, 0]
        for side in sides:
            before = children_cpu_seconds()
            if side == 0:
                seconds, (cell,) = side_by_side(at / "alone", settings, 1)
                alone_s.append(seconds)
                alone_cpu.append(children_cpu_seconds() - before)
                alone_cells.append(cell)
            elif side == 1:
                seconds, found = side_by_side(at / "beside", settings, slots)
                beside_s.append(seconds)
                beside_cells += found
            else:
                seconds, own = sweep(at, settings, cells)
                pool_s.append(seconds)
                pool_cpu.append((children_cpu_seconds() - before) / cells)
                launcher_s.append(own)
                pool_cells += lives(at / "grid")
        for run in sorted((at / "beside").iterdir()):
            check_equal(run, of_seed(at / "grid", int(run.name)))
    each = [seconds / slots for seconds in alone_s]
    pool = Times([seconds / cells for seconds in pool_s], each)
    limit = Times([seconds / slots for seconds in beside_s], each)
    medians = [statistics.median(c.work for c in part) for part in batches(pool_cells, cells)]
    stepping = Times(medians, [cell.work for cell in alone_cells])
    peer = f"{slots} cores ÷ one run alone"
    rates: dict[str, Any] = {"items": 3600, "unit": "cells/h"}
    rows = [
        pool.row(f"grid of {cells} cells, {steps} steps each", peer, "at least", GOAL_CPU, **rates),
        limit.row(f"{slots} runs at once without the pool", peer, "at least", **rates),
        Times(pool_cpu, alone_cpu).row(
            "CPU time of a cell in the pool, launcher included", "of a run alone", "at most"
        ),
        stepping.row("steps and evaluations of a cell in the pool", "of a run alone", "at most"),
    ]
    times = alone_s, pool_s, launcher_s
    return rows, profile(alone_cells, beside_cells, pool_cells, *times, slots, steps)


def batches(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    return [cells[at : at + size] for at in range(0, len(cells), size)]


def profile(
    alone: Sequence[Cell],
    beside: Sequence[Cell],
    pool: Sequence[Cell],
    alone_s: Sequence[float],
    pool_s: Sequence[float],
    launcher_s: Sequence[float],
    slots: int,
    steps: int,
) -> list[str]:
    """Say where a grid's time goes, from the runs' own records."""

    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} s ({min(values):.2f}..{max(values):.2f})"

    end = [s - cell.start - cell.work for s, cell in zip(alone_s, alone, strict=True)]
    work, cell = (statistics.median(v) for v in ([c.work for c in alone], alone_s))
    shared = statistics.median(c.work for c in pool) / work
    share = statistics.median(a / b for a, b in zip(launcher_s, pool_s, strict=True))
    full = work / steps * 500
    size = len(pool) // len(pool_s)
    between = [gap for grid in batches(pool, size) for gap in gaps(grid, slots)]
    return [
        f"A run alone: {middle([c.start for c in alone])} from the start of its process to its "
        f"first step, {middle([c.work for c in alone])} of steps and evaluations, {middle(end)} to "
        f"end. In the pool {middle([c.work for c in pool])} of steps ({shared:.3f} times), and "
        f"{slots} at once without it {middle([c.work for c in beside])}: what runs on other cores "
        "take from one another. Between the last step of a cell and the first of the next on its "
        f"core: {middle(between) if between else 'not measured'}.",
        f"The launcher took {share:.2%} of one core. At the preset's 500 steps a run alone would "
        f"take {full + cell - work:.0f} s, {(cell - work) / (full + cell - work):.1%} of it start "
        "and end: the longer the cells, the closer the grid's ratio is to that of the steps.",
        "Tables and last checkpoint of a cell in the pool equal those of the same run alone, bit "
        "for bit.",
    ]


def gaps(grid: Sequence[Cell], slots: int) -> list[float]:
    """Return the seconds from a cell's last step to the first step of the next in its place."""
    begun = sorted(cell.began for cell in grid)[slots:]
    return [a - b for a, b in zip(begun, sorted(cell.ended for cell in grid), strict=False)]


def on_gpu(given: Any, folder: Path) -> tuple[list[Row], list[str]]:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # of one GPU
    cells, steps, turns = (4, 20, 1) if given.quick else (8, 150, 3)
    settings = [f"train.steps={steps}", *SETTINGS, "runtime.device=cuda"]
    seconds: dict[int, list[float]] = {}
    for turn in range(turns):
        for count in (1, *RUNS_PER_GPU)[:: 1 if turn % 2 else -1]:
            at = folder / f"{turn}-{count}"
            took, _ = sweep(at, [*settings, f"runtime.runs_per_gpu={count}"], cells)
            seconds.setdefault(count, []).append(took / cells)
        for count, seed in itertools.product(RUNS_PER_GPU, range(cells)):
            packed, unpacked = (folder / f"{turn}-{n}" / "grid" for n in (count, 1))
            check_equal(of_seed(packed, seed), of_seed(unpacked, seed))
    rows = [
        Times(seconds[count], seconds[1]).row(
            f"{cells} cells, {count} at once on a GPU", "one by one", "at least",
            GOAL_GPU if count == PROMISED else None, items=3600, unit="cells/h",
        )
        for count in RUNS_PER_GPU
    ]  # fmt: skip
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    mps = "on" if (pipes / "control").exists() else "off"
    cores = len(visible_cpus())
    return rows, [
        f"{cores} CPU cores; CUDA MPS is {mps}. Starts included. Tables and last checkpoints of "
        "packed runs equal those of the runs one by one, bit for bit."
    ]


def sweep(at: Path, settings: Sequence[str], cells: int, base: str = "tiny") -> tuple[float, float]:
    """Run `stabkit sweep` on a terminal, as a user does. Return its seconds and CPU seconds."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "grid.yaml").write_text(f"name: grid\nbase: {base}\nseeds: {list(range(cells))}\n")
    command = ["sweep", str(at / "grid.yaml"), "--cluster", "local", "--runs", str(at)]
    screen, terminal = os.openpty()
    began = time.perf_counter()
    launcher = stabkit_process([*command, *settings], terminal, TERM="xterm", COLUMNS="100")
    os.close(terminal)
    shown: list[bytes] = []
    reader = threading.Thread(target=drain, args=(screen, shown))
    reader.start()
    own = 0.0
    while launcher.poll() is None:
        own = max(own, cpu_seconds(launcher.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    reader.join()
    if launcher.returncode:
        raise SystemExit(b"".join(shown).decode(errors="replace"))
    return seconds, own


def drain(screen: int, shown: list[bytes]) -> None:
    """Read a terminal, since one that nobody reads blocks its writer."""
    try:
        while part := os.read(screen, 65536):
            shown.append(part)
    except OSError:  # the other end was closed
        pass
    os.close(screen)


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process without its children, or 0 without /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_cpu_seconds() -> float:
    """Return the CPU seconds of all ended processes below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def side_by_side(at: Path, settings: Sequence[str], count: int) -> tuple[float, list[Cell]]:
    """Run seeds 0, 1, … by `stabkit train` at once. Return the seconds until the last ended."""
    at.mkdir(parents=True)
    began, clock = time.time(), time.perf_counter()
    runs = []
    for seed in range(count):
        words = ["train", "tiny", f"seed={seed}", *settings, "--run-dir", str(at / str(seed))]
        with (at / str(seed)).with_suffix(".log").open("wb") as log:
            runs.append(stabkit_process(words, log.fileno()))
    codes = [run.wait() for run in runs]
    seconds = time.perf_counter() - clock
    if any(codes):
        raise SystemExit("\n".join(log.read_text() for log in at.glob("*.log")))
    for log in at.glob("*.log"):
        log.unlink()
    return seconds, lives(at, began)


def stabkit_process(words: Sequence[str], out: int, **variables: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "stabkit", *words]
    return subprocess.Popen(
        command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | variables
    )


def lives(folder: Path, began: float | None = None) -> list[Cell]:
    """Return the cells from the runs' logs. `began` is when their processes were started."""
    cells = []
    for file in sorted(folder.glob("*/events.jsonl")):
        events = [json.loads(line) for line in file.read_text().splitlines()]
        times = {e["kind"]: datetime.fromisoformat(e["time"]).timestamp() for e in events}
        first, last = times["start"], times["done"]
        cells.append(Cell(first - (began or first), last - first, first, last))
    return cells


def of_seed(folder: Path, seed: int) -> Path:
    (found,) = folder.glob(f"seed={seed}-*")
    return found


def check_equal(one: Path, other: Path) -> None:
    """Raise AssertionError unless tables (without rates) and last checkpoints are bit-equal."""
    ours, theirs = (stabkit.open_run(path) for path in (one, other))
    for table in ("signals", "scalars", "evals"):
        frames = [getattr(run, table)() for run in (ours, theirs)]
        if table == "scalars":
            frames = [f[f["name"] != "images_per_s"].reset_index(drop=True) for f in frames]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    states = (
        torch.load(run.dir.checkpoint_file, map_location="cpu", weights_only=True)
        for run in (ours, theirs)
    )
    assert same(*states), f"{one} and {other} ended with other weights"


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    main()
