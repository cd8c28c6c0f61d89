"""Measure `stabkit analyze` and `stabkit report` on many runs, beside DuckDB.

    python -m benchmarks.speed.analysis_size                      # in a temporary folder: 7 GB
    python -m benchmarks.speed.analysis_size --runs 20            # a fiftieth
    python -m benchmarks.speed.analysis_size --folder F --keep    # made once, measured again
    python -m benchmarks.speed.analysis_size --short              # short runs only: 0.4 GB

Three sizes: 1,000 runs of 10,000 steps (`analyze`, beside DuckDB); 1,200 runs of 300 steps with 60
evaluations (`analyze`); 6 runs of 1,000 steps with 200 evaluations (`report`). All have 20 layers.

Needs the `duckdb` package. The store's own Writer makes the runs, in parts as a training leaves
them (one for each table every 50 steps: 600,000 files). A tenth of the runs have dips and spikes.
Every figure is of a fresh process, its start included, with the files still in the page cache.
Memory is an upper bound: the sum of the resident peaks (VmHWM) of the command's processes. DuckDB
reads the same columns of the same files: min, max and mean of the gradient norm by layer and of the
scalars by name, the number and mean of the evaluations, and the length of their bits.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from stabkit.config import RunConfig, read_base, run_id, save_config, validate, with_settings
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer

STEPS, EVERY, SAMPLES = 10_000, 50, 1000
SHORT = {"analyze": (1200, 300, 5), "report": (6, 1000, 5)}  # runs, steps, steps an evaluation
LAYERS = ["patch_embed", *(f"blocks.{i}" for i in range(16)), "norm", "projector", "predictor"]
SERIES = ["loss", "loss_nats", "loss_relative", "lr", "momentum", "grad_norm_total"]
RATES = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512]
MIB_A_RUN = 7.0

DUCKDB = """
import duckdb, sys
for table, query in {
    "layers": "layer, max(step), max(depth), min(grad_norm), max(grad_norm), avg(grad_norm)",
    "scalars": "name, max(step), min(value), max(value), avg(value)",
    "evals": "metric, count(*), avg(value), sum(octet_length(correct))",
}.items():
    files = f"read_parquet('{sys.argv[1]}/**/{table}/*.parquet')"
    print(len(duckdb.sql(f"select {query} from {files} group by 1").fetchall()))
"""


class Measured(NamedTuple):
    seconds: list[float]
    cpu_seconds: list[float]  # of all its processes; other load on the machine disturbs it least
    peak_mib: float
    output: str


def make_run(folder: Path, number: int, steps: int = STEPS, every: int = EVERY) -> None:
    """Write one run. Every tenth has two dips, each with a burst of spikes before it."""
    rng = np.random.default_rng(number)
    settings = {
        "optim.lr": RATES[number % 10],
        "model.freeze_patch_embed": number % 20 >= 10,
        "seed": number // 20,
        "train.steps": steps,
    }
    config = validate(RunConfig, with_settings(read_base("tiny"), settings), "benchmark")
    rundir = RunDir(folder / f"{number % 20}" / f"run-{run_id(config)}")
    rundir.path.mkdir(parents=True)
    rundir.config_file.write_text(save_config(config))
    rundir.append_entry("start", 0)
    rundir.write_status(Status("done", steps, steps))
    falls = [3 * steps // 10, 7 * steps // 10] if number % 10 == 9 else []
    noise = lfilter([0.6], [1, -0.8], rng.normal(size=(steps, len(LAYERS))), axis=0)
    grads = np.exp(0.3 * noise) * np.linspace(1, 4, len(LAYERS))
    for at in falls:
        for depth in range(4):
            grads[at + depth : at + depth + 3, depth] *= 30
    values = np.stack([grads, grads / 7, np.full_like(grads, 50)], axis=1).astype(np.float32)
    missing = dict.fromkeys(SIGNALS, np.zeros((every, len(LAYERS)), dtype=bool))
    curves = {name: rng.lognormal(size=steps) * 0.01 + 0.5 for name in SERIES}
    hardness = rng.random(SAMPLES)
    writer = Writer(rundir.path, run_id(config))
    for first in range(0, steps, every):
        these, inside = np.arange(first, first + every), slice(first, first + every)
        signals = {signal: values[inside, i] for i, signal in enumerate(SIGNALS)}
        writer.add_layers(these, LAYERS, signals, missing)
        for name, curve in curves.items():
            writer.add_scalars(these, name, curve[inside])
        writer.add_scalars(these, "nonfinite_layers", np.zeros(every))
        for name in ("feature_std", "embedding_std", "effective_rank", "images_per_s"):
            writer.add_scalars(these[:1], name, rng.uniform(0.9, 1.1, 1))
        level = 0.2 + 0.5 * (1 - np.exp(-first / (steps / 5)))
        level -= 0.1 * any(at <= first < at + 6 * steps // 100 for at in falls)
        correct = hardness + 0.02 * rng.normal(size=SAMPLES) < level
        writer.add_eval(first, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
        if (first + every) % EVERY == 0:
            writer.flush()


def make(folder: Path, first: int, count: int, steps: int = STEPS, every: int = EVERY) -> None:
    os.fsync = lambda fd: None  # durability is not measured here
    for number in range(first, first + count):
        make_run(folder, number, steps, every)


def measure(command: list[str], repeats: int) -> Measured:
    seconds, cpu, peak, output = [], [], 0.0, ""
    for _ in range(repeats):
        with tempfile.TemporaryFile("w+") as out:
            began, used = time.perf_counter(), children_cpu()
            process = subprocess.Popen([sys.executable, *command], stdout=out)
            held: dict[int, int] = {}
            while process.poll() is None:
                for pid in family(process.pid):
                    held[pid] = max(held.get(pid, 0), peak_kib(pid))
                time.sleep(0.02)
            seconds.append(time.perf_counter() - began)
            cpu.append(children_cpu() - used)
            out.seek(0)
            output = out.read()
        if process.returncode:
            raise SystemExit(f"{command} failed")
        peak = max(peak, sum(held.values()) / 1024)
    return Measured(seconds, cpu, peak, output)


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(one for child in text.split() for one in family(int(child)))]


def peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave them there, use those there")
    parser.add_argument("--short", action="store_true", help="only the cases of short runs")
    given = parser.parse_args()
    measure_short()
    if given.short:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)) / f"{given.runs}-runs"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            need = given.runs * MIB_A_RUN / 1024
            free = shutil.disk_usage(folder.parent).free / 2**30
            if free < 1.2 * need:
                raise SystemExit(f"{folder.parent}: {need:.1f} GiB are needed, {free:.1f} are free")
            make_all(folder, given.runs)
        try:
            report(folder, given.runs)
        finally:
            if not given.keep:
                shutil.rmtree(folder)


def measure_short() -> None:
    for verb, (runs, steps, every) in SHORT.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "runs"
            make_all(folder, runs, steps, every)
            found = measure(["-m", "stabkit", verb, str(folder)], 1)
        name = f"{verb} of {runs} runs, {steps // every} evaluations each"
        seconds, cpu = found.seconds[0], found.cpu_seconds[0]
        print(f"{name:<44}{seconds:8.1f} s{cpu:8.1f} s of CPU{found.peak_mib:7.0f} MiB", flush=True)


def make_all(folder: Path, runs: int, steps: int = STEPS, every: int = EVERY) -> None:
    began = time.perf_counter()
    chunks = range(0, runs, 10)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        counts = [min(10, runs - first) for first in chunks]
        list(pool.map(partial(make, folder, steps=steps, every=every), chunks, counts))
    print(f"made {runs} runs in {time.perf_counter() - began:.0f} s", flush=True)


def report(folder: Path, runs: int) -> None:
    one = max(folder.rglob("config.yaml")).parent  # a run with dips
    analyze = ["-m", "stabkit", "analyze"]
    repeats = 3 if runs <= 100 else 1
    with tempfile.TemporaryDirectory() as out:
        figure = [*analyze, str(one), "--plot", "grad-norms", "-o", out]
        cases = {
            "one run: summary": ([*analyze, str(one)], 5),
            "one run: --plot grad-norms": (figure, 3),
            "one run: DuckDB": (["-c", DUCKDB, str(one)], 5),
            f"{runs} runs: DuckDB": (["-c", DUCKDB, str(folder)], repeats),
            f"{runs} runs: summary": ([*analyze, str(folder)], repeats),
        }
        results = {}
        for name, (command, times) in cases.items():
            found = results[name] = measure(command, times)
            spread = f"({min(found.seconds):.1f}..{max(found.seconds):.1f})"
            middle = statistics.median(found.seconds)
            cpu = statistics.median(found.cpu_seconds)
            words = f"{middle:8.1f} s  {spread:<16}{cpu:8.1f} s of CPU{found.peak_mib:7.0f} MiB"
            print(f"{name:<28}{words}", flush=True)
    for what in ("one run", f"{runs} runs"):
        ours, theirs = results[f"{what}: summary"], results[f"{what}: DuckDB"]
        ratio, of_cpu = (
            statistics.median(a) / statistics.median(b)
            for a, b in ((ours.seconds, theirs.seconds), (ours.cpu_seconds, theirs.cpu_seconds))
        )
        print(f"{what}: the summary takes {ratio:.1f} times DuckDB's time, {of_cpu:.1f} its CPU's")
    planted = sum(number % 10 == 9 for number in range(runs))
    lines = results[f"{runs} runs: summary"].output.splitlines()
    shown = [line for line in lines if line.startswith(str(folder)) or " stable" in line]
    print(f"{planted} runs have planted dips; the summary says:", *shown[:2], sep="\n  ")


if __name__ == "__main__":
    main()
