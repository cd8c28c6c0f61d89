"""How long `stabkit status` takes over 1,000 runs: python benchmarks/status.py

Prints the median and the range of five calls, in process (without the start of Python), and the
share of the limit of 2 s: for runs that all ended, runs that all train on other machines, and runs
that all wait in SLURM's queue (where `squeue`, if it is there, is asked once).
"""

import statistics
import tempfile
import time
from pathlib import Path

from stabkit.rundir import RunDir, State, Status
from stabkit.sweep.status import status_rows
from stabkit.sweep.submissions import write_submitted

RUNS = 1000
LIMIT_S = 2.0


def fill(folder: Path, state: State, host: str, submitted: bool) -> None:
    for i in range(RUNS):
        rundir = RunDir(folder / "sweep" / f"lr={i},seed=0-{i:08x}")
        rundir.path.mkdir(parents=True)
        rundir.config_file.write_text("seed: 0\n")
        for name in ("layers", "scalars", "evals", "checkpoints"):
            rundir.table(name).mkdir()
        rundir.write_status(Status(state, 100, 1000, knn=0.4, eta_s=60.0))
        text = rundir.status_file.read_text()
        rundir.status_file.write_text(text.replace('"host": "', f'"host": "{host}'))
        if submitted:
            write_submitted(rundir, f"1_{i}")


def measure(folder: Path) -> list[float]:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        rows = status_rows(folder)
        seconds.append(time.perf_counter() - began)
        assert len(rows) == RUNS
    return seconds


if __name__ == "__main__":
    cases: list[tuple[str, State, str, bool]] = [
        ("done", "done", "", False),
        ("running elsewhere", "running", "n", False),
        ("waiting in the queue", "waiting", "", True),
    ]
    for name, state, host, submitted in cases:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), state, host, submitted)
            seconds = measure(Path(folder))
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f}..{max(seconds):.2f}"
        print(f"{name:<22}{middle:.2f} s  ({spread}), {middle / LIMIT_S:.0%} of the limit")
