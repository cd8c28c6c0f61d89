"""Run lr_grid at scale cifar: rates, learned and frozen, one seed after the other.

Continues where the last call stopped: the launcher is told to stop in time, and the runs save
themselves. Run folders are in runs/gpu; their tables go into one archive in --results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import stabkit
from benchmarks.gpu.measurements import Measurement, Part, open_part, options
from benchmarks.lib.results import ROOT
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.summary import run_table

COLUMNS = ("cell", "seed", "state", "last kNN", "dips", "deepest", "bursts", "verdict")
SEEDS = (0, 1, 2)
TO_SAVE = 60.0  # seconds that runs have to save themselves
TABLES = ("layers", "scalars", "evals")
FILES = ("config.yaml", "meta.json", "status.json", "events.jsonl")


def main() -> None:
    given = options(__doc__).parse_args()
    part = open_part("study", given, COLUMNS)
    if not given.quick and given.data is None:
        raise SystemExit("the study needs CIFAR-10: --data FOLDER with train.parquet, test.parquet")
    ends = time.monotonic() + given.seconds - TO_SAVE
    runs = given.results / "runs" if given.quick else ROOT / "runs" / "gpu"
    for seed in SEEDS[:1] if given.quick else SEEDS:
        if part.has(f"seed {seed}") and part.values(f"seed {seed}")["complete"]:
            continue
        if time.monotonic() > ends - 30:
            raise SystemExit(f"out of time before seed {seed}")
        complete = train(given, seed, runs, ends, packing(given.results))
        record(part, runs / "lr_grid", seed, complete)
        archive(runs / "lr_grid", given.results / "study-tables.tar.gz")
        if not complete:
            raise SystemExit(f"seed {seed} is not at its end: the same command goes on")
    part.finish()


def packing(results: Path) -> int:
    """Return how many runs at once part `grids` found fastest for cifar, or 4 without a result."""
    file = results / "grids.json"
    measured = json.loads(file.read_text())["measurements"] if file.exists() else {}
    turns = measured.get("cifar", {"values": {}})["values"].get("turns")
    return int(min(turns[-1], key=lambda count: turns[-1][count])) if turns else 4


def train(given: argparse.Namespace, seed: int, runs: Path, ends: float, packed: int) -> bool:
    """Train the runs of a seed. Return whether all of them are done."""
    words = [f"seed={seed}", f"runtime.device={given.device}"]
    if given.quick:
        words += ["train.steps=20", "optim.warmup_steps=4", "data.num_train=512"]
    else:
        words += [f"data.path={given.data.resolve()}", "compute.precision=bf16"]
        words += [f"runtime.runs_per_gpu={packed}"]
    if given.steps:
        words += [f"train.steps={given.steps}"]
    scale = "tiny" if given.quick else "cifar"
    command = [sys.executable, "-m", "stabkit", "sweep", str(ROOT / "sweeps/lr_grid.yaml")]
    command += ["--scale", scale, "--cluster", "local", "--runs", str(runs), *words]
    print(" ".join(command), flush=True)
    launcher = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        return launcher.wait(max(1.0, ends - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        launcher.send_signal(signal.SIGTERM)
    try:
        launcher.wait(TO_SAVE - 5)
    except subprocess.TimeoutExpired:
        launcher.kill()
    return False


def record(part: Part, folder: Path, seed: int, complete: bool) -> None:
    runs = stabkit.load(folder)
    table = run_table(diagnose(runs))
    table = table[table["seed"] == seed]
    lines = [
        [row.cell, str(row.seed), row.state, f"{row.last:.3f}", str(row.dips),
         f"{row.deepest:.3f}", str(row.bursts), row.verdict]
        for row in table.itertuples()
    ]  # fmt: skip
    values = {"complete": complete, "table": json.loads(table.to_json(orient="records"))}
    part.add(f"seed {seed}", Measurement(lines, values=values))


def archive(folder: Path, file: Path) -> None:
    """Pack everything that an analysis reads, without checkpoints, into one file of some MiB."""
    new = file.with_suffix(".new")
    with tarfile.open(new, "w:gz") as tar:
        for run in sorted(path.parent for path in folder.glob("*/config.yaml")):
            for name in (*TABLES, *FILES):
                if (run / name).exists():
                    tar.add(run / name, f"{folder.name}/{run.name}/{name}")
    os.replace(new, file)


if __name__ == "__main__":
    main()
