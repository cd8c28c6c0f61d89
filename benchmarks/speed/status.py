"""Time `stabkit status` over 1,000 runs: python -m benchmarks.speed.status

It is called in process, so the start of Python does not count, and compared with its limit of 2 s
(`--quick`: 100 runs, 0.2 s). The runs have all ended, or all train on other machines, or all wait
in SLURM's queue, in which case `squeue` is asked once if it exists.
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

from benchmarks.lib.results import Row, Times, parser, publish
from stabkit.rundir import RunDir, State, Status
from stabkit.sweep.status import status_rows
from stabkit.sweep.submissions import write_submitted

LIMIT_S = 2e-3  # per run
CASES: list[
    tuple[str, State, str, bool]
] = [  # name, state, prefix of the host, whether submitted to SLURM
    ("done", "done", "", False),
    ("running elsewhere", "running", "n", False),
    ("waiting in the queue", "waiting", "", True),
]


def make(folder: Path, runs: int) -> list[RunDir]:
    rundirs = [RunDir(folder / "sweep" / f"lr={i},seed=0-{i:08x}") for i in range(runs)]
    for rundir in rundirs:
        rundir.path.mkdir(parents=True)
        rundir.config_file.write_text("seed: 0\n")
        for name in ("layers", "scalars", "evals", "checkpoints"):
            rundir.table(name).mkdir()
    return rundirs


def bring(rundirs: list[RunDir], state: State, host: str, submitted: bool) -> None:
    with mock.patch("os.fsync"):  # durability is not measured here
        for i, rundir in enumerate(rundirs):
            rundir.write_status(Status(state, 100, 1000, knn=0.4, eta_s=60.0))
            text = rundir.status_file.read_text()
            rundir.status_file.write_text(text.replace('"host": "', f'"host": "{host}'))
            if submitted:
                write_submitted(rundir, f"1_{i}")


def measure(folder: Path, runs: int, calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        rows = status_rows(folder)
        seconds.append(time.perf_counter() - began)
        assert len(rows) == runs
    return seconds


def main() -> None:
    given = parser(__doc__).parse_args()
    runs, calls = (100, 5) if given.quick else (1000, 9)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rundirs = make(Path(folder), runs)
        for name, state, host, submitted in CASES:
            bring(rundirs, state, host, submitted)
            seconds = measure(Path(folder), runs, calls)
            times = Times(seconds, [LIMIT_S * runs] * calls)
            rows.append(times.row(f"{runs:,} runs, {name}", "limit", "at most", 1.0))
    publish(rows, given)


if __name__ == "__main__":
    main()
