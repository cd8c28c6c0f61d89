"""A day on a cluster in small: many cells, each preempted three times, on a real SLURM.

A lost or doubled row may be as rare as one in a thousand cells, so their number can be chosen:

    STABKIT_CELLS=1000 python -m pytest -s -m slow tests/slurm/test_many_cells.py

Four starts a cell take most of the time: 5 to 16 seconds of one core each, as busy as it is. Nearly
all of it is the import of torch. With STABKIT_PRELOADED=1 the jobs start from a process that has
imported it (`preloaded_python`).

Beside the preemptions that are aimed at one cell (`scontrol requeue`), a job of a higher partition
takes both nodes now and then, and preempts all that run.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stabkit.rundir import RunDir, find_runs
from stabkit.store.gaps import gaps
from stabkit.store.reader import open_run
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Site
from tests.slurm.preloaded_python import preloaded_python
from tests.train.test_resume import assert_same_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

CELLS = int(os.environ.get("STABKIT_CELLS", "12"))
PREEMPTIONS = 3
WAVE_EVERY = 20  # preemptions of one cell, after which all that run are preempted together
SECONDS_EACH = 600.0  # that a cell may take; only a hang takes so long
FEW = 2  # cells of the sweep that the launcher's memory is compared with
COMPARED = 5  # cells that are trained again without a break
MISSED = 0.01  # share of cells that may end between two looks, before their last preemption
RUN = [
    *("data.num_train=640", "data.num_heldout=20", "data.image_size=16", "model.width=16"),
    *("model.depth=2", "model.heads=2", "method.hidden=16", "method.out=8", "train.batch=8"),
    *("train.steps=120", "optim.warmup_steps=4", "knn.every=30", "knn.queries=20", "knn.bank=40"),
    *("knn.fifo=0.5", "runtime.checkpoint_every=40", "runtime.flush_every=20"),
]
# The most memory since the exec; that of wait4 counts what the parent held at the fork.
MEASURED = """
import re, sys
from pathlib import Path
from stabkit.cli import main
sys.executable = sys.argv[2]  # of the jobs
code = main(sys.argv[3:])
most = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
Path(sys.argv[1]).write_text(most[1])
sys.exit(code)
"""
ONCE = {
    "layers": ("step", "layer"),
    "scalars": ("step", "name"),
    "evals": ("step", "metric", "k", "temperature"),
}


@dataclass(frozen=True)
class Launch:
    """What a command took: seconds, the most memory, and how often it asked SLURM's queue."""

    said: str
    seconds: float
    most_mib: float
    squeue_calls: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.most_mib:.0f} MiB, squeue x {self.squeue_calls}"


def launch(site: Site, python: str, *words: str) -> Launch:
    """Run a command of stabkit as a process of its own, with a `squeue` that counts its calls.

    Jobs that it submits run in `python`.
    """
    bin_folder, calls = site.folder / "bin", site.folder / "squeue-calls"
    memory = site.folder / "memory"
    bin_folder.mkdir(exist_ok=True)
    counting = bin_folder / "squeue"
    real = site.cluster.command("sh", "-c", "command -v squeue").strip()
    counting.write_text(f'#!/bin/sh\necho >> "$COUNTED_CALLS"\nexec {real} "$@"\n')
    counting.chmod(0o755)
    calls.write_text("")
    env = site.cluster.env | {"COUNTED_CALLS": str(calls)}
    env["PATH"] = f"{bin_folder}{os.pathsep}{env['PATH']}"
    began = time.monotonic()
    with (site.folder / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURED, str(memory), python, *words],
            cwd=site.folder,
            env=env,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        process.wait()
        said.seek(0)
        text = said.read()
    assert process.returncode == 0, text
    seconds = time.monotonic() - began
    return Launch(text, seconds, int(memory.read_text()) / 1024, calls.read_text().count("\n"))


def write_sweep(site: Site, name: str, first_seed: int, cells: int) -> list[str]:
    seeds = list(range(first_seed, first_seed + cells))
    text = f"name: {name}\nbase: tiny\nseeds: {seeds}\nslurm: {{timeout_min: 60, mem_gb: 2}}\n"
    (site.folder / f"{name}.yaml").write_text(text)
    return ["sweep", f"{name}.yaml", "--cluster", "slurm", *RUN]


def attempts(rundir: RunDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rundir.read_meta().get("attempts", [])
    return found


class Preempting:
    """Requeue every cell's job until it was stopped often enough, each time while it trains."""

    def __init__(self, site: Site, cells: list[RunDir]) -> None:
        self.site, self.cells = site, {self.job(cell): cell for cell in cells}
        self.aimed: Counter[str] = Counter()
        self.waves = 0
        self._seen: dict[str, int] = {}
        self._released: dict[str, float] = {}

    @staticmethod
    def job(cell: RunDir) -> str:
        return re.findall(r'"job_id": "(\w+)"', cell.job_file.read_text())[0]

    def queue(self) -> dict[str, tuple[str, str]]:
        """Return state and reason of every job that has not ended."""
        lines = self.site.cluster.command("squeue", "-h", "-r", "-o", "%i|%T|%r").splitlines()
        return {line.split("|")[0]: (line.split("|")[1], line.split("|")[2]) for line in lines}

    def look(self) -> bool:
        """Preempt what has begun to train since its last stop; return whether any job is left."""
        queue = self.queue()
        stop = []
        for job, (state, _) in queue.items():
            if state == "RUNNING" and job in self.cells and self.aimed[job] < PREEMPTIONS:
                status, begun = self.cells[job].last_status(), len(attempts(self.cells[job]))
                if status and status.state == "running" and begun > self._seen.get(job, 0):
                    self._seen[job] = begun
                    stop.append(job)
        for job in stop:
            with suppress(RuntimeError):  # it has ended meanwhile
                self.site.cluster.command("scontrol", "requeue", job)
                self.aimed[job] += 1
        now = time.monotonic()
        for job, (state, reason) in queue.items():
            waits = state == "PENDING" and reason == "BeginTime"
            if waits and now > self._released.get(job, 0.0) + 10:  # it begins two seconds later
                with suppress(RuntimeError):  # it has begun meanwhile
                    self.site.cluster.release(job)
                self._released[job] = now
        if self.aimed.total() >= WAVE_EVERY * (self.waves + 1):
            self.waves += 1
            words = ["-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 1"]
            self.site.cluster.command("sbatch", *words)
        return bool(queue.keys() & self.cells.keys())


def assert_whole(cell: RunDir) -> None:
    """No step is missing and no row is there twice, in the parts as they lie on the disk."""
    assert gaps(open_run(cell.path)) == []
    for table, keys in ONCE.items():
        parts = [pq.read_table(part) for part in sorted(cell.table(table).glob("*.parquet"))]
        rows = [tuple(row.values()) for part in parts for row in part.select(keys).to_pylist()]
        assert rows, cell.path
        assert len(rows) == len(set(rows)), f"{cell.path}: a row of {table} is there twice"


@pytest.fixture(autouse=True)
def rare_accounting(cluster: Cluster) -> Iterator[None]:
    """Let SLURM look at memory rarely: it reads all of /proc for each job, half of two cores."""
    conf = cluster.folder / "slurm.conf"
    before = conf.read_text()
    assert "Frequency=task=1\n" in before
    conf.write_text(before.replace("Frequency=task=1\n", "Frequency=task=30\n"))
    cluster.command("scontrol", "reconfigure")
    yield
    conf.write_text(before)
    cluster.command("scontrol", "reconfigure")


@pytest.fixture
def python(site: Site) -> Iterator[str]:
    """Give the interpreter of the jobs."""
    if os.environ.get("STABKIT_PRELOADED") == "1":
        with preloaded_python(site.cluster.folder) as script:
            yield script
    else:
        yield sys.executable


def test_many_cells_preempted_three_times_each(site: Site, python: str, tmp_path: Path) -> None:
    began = time.monotonic()
    low = ["scontrol", "update", "PartitionName=low"]
    site.cluster.command(*low, "State=DOWN")  # nothing begins before the preemptions do
    few = launch(site, python, *write_sweep(site, "few", 100_000, FEW))
    words = write_sweep(site, "many", 0, CELLS)
    many = launch(site, python, *words)
    assert f"{CELLS} to run" in many.said
    assert many.said.count("submitted ") == -(-CELLS // 5), "an array holds at most five jobs"
    cells = [RunDir(path) for path in find_runs(site.folder / "runs/many")]
    assert len(cells) == CELLS
    preempting = Preempting(site, cells)
    again = launch(site, python, *words)
    assert f"{CELLS} running or queued, 0 to run" in again.said
    site.cluster.command(*low, "State=UP")
    deadline = time.monotonic() + CELLS * SECONDS_EACH
    while preempting.look():
        assert time.monotonic() < deadline, site.story()
        time.sleep(0.2)
    last, status = launch(site, python, *words), launch(site, python, "status", "runs/many")
    assert f"{CELLS} done, 0 to run" in last.said
    assert status.said.count("done ") == CELLS

    missed = 0
    for cell in cells:
        assert_whole(cell)
        firsts = [attempt["first_step"] for attempt in attempts(cell)]
        missed += len(firsts) <= PREEMPTIONS
        assert firsts == sorted(firsts)
        assert {a["job"] for a in attempts(cell)} == {Preempting.job(cell)}
    assert missed <= MISSED * CELLS, "most are preempted three times"
    for cell in cells[:: -(-CELLS // COMPARED)]:
        seed = open_run(cell.path).settings["seed"]
        unbroken = RunDir(tmp_path / f"unbroken-{seed}")
        train(small_config(*RUN, f"seed={seed}"), unbroken)
        assert_same_run(cell.path, unbroken.path)

    starts = sum(len(attempts(cell)) for cell in cells)
    kinds = Counter(e["kind"] for cell in cells for e in cell.read_entries())
    assert few.squeue_calls
    for run in (many, again, last):
        assert run.squeue_calls <= few.squeue_calls, "one look at the queue, however many cells"
        assert run.most_mib < few.most_mib + 20 + 0.05 * CELLS, "the launcher's memory is flat"
    assert status.squeue_calls == 0, "nothing is left that SLURM could hold"
    print(
        f"\n{CELLS} cells: {starts} starts, {sum(preempting.aimed.values())} aimed preemptions, "
        f"{preempting.waves} times both nodes taken; {missed} cells ended before; "
        f"{kinds['preempted']} saved in time, {starts - CELLS - kinds['preempted']} killed first; "
        f"{time.monotonic() - began:.0f} s\n"
        f"launch of {FEW}: {few}\nlaunch of {CELLS}: {many}\nsame command, all queued: {again}\n"
        f"same command, all done: {last}\nstatus: {status}"
    )
