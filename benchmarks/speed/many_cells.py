"""Time status and dry run of 10,000 cells: python -m benchmarks.speed.many_cells

The cells have ended, with ten parts a table. Both commands run in process, so the start of Python
does not count, and their seconds of CPU are compared with a limit of 5 s (`--quick`: 500 cells,
0.25 s): both use one core, and a wait for the disk is not theirs. The dry run is asked before the
sweep begins, and again when every folder is there and its settings are compared.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks.lib.results import Row, Times, parser, publish
from stabkit.cli import main as stabkit
from stabkit.config import save_config
from stabkit.rundir import TABLES, RunDir, Status, part_name
from stabkit.sweep.grid import load_sweep

LIMIT_S = 5e-4  # a cell
PARTS = 10
RATES = 10  # learning rates; the other factor is the seed


def write_sweep(file: Path, cells: int) -> None:
    rates = ", ".join(f"{1e-4 * (i + 1):.6g}" for i in range(RATES))
    seeds = ", ".join(map(str, range(cells // RATES)))
    file.write_text(f"name: many\nbase: tiny\ngrid: {{optim.lr: [{rates}]}}\nseeds: [{seeds}]\n")


def write_cells(file: Path, folder: Path) -> None:
    status = Status("done", 700, 700, knn=0.4, parts=dict.fromkeys(TABLES, PARTS))
    with mock.patch("os.fsync"):  # durability is not measured here
        for run in load_sweep(file).runs:
            rundir = RunDir(folder / run.folder)
            for table in TABLES:
                rundir.table(table).mkdir(parents=True)
                for number in range(PARTS):
                    (rundir.table(table) / part_name(number)).touch()
            rundir.config_file.write_text(save_config(run.config))
            rundir.write_meta({"attempts": [{"first_step": 0}]})
            rundir.write_status(status)


def call(*words: str) -> Callable[[], None]:
    def act() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert stabkit(list(words)) == 0

    return act


def measure(act: Callable[[], None], calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        began = time.process_time()
        act()
        seconds.append(time.process_time() - began)
    return seconds


def main() -> None:
    given = parser(__doc__).parse_args()
    cells, calls = (500, 3) if given.quick else (10_000, 3)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name), Path(name) / "many.yaml"
        write_sweep(file, cells)
        dry = call("sweep", str(file), "--dry-run", "--cluster", "local", "--runs", str(folder))

        def add(what: str, act: Callable[[], None]) -> None:
            times = Times(measure(act, calls), [LIMIT_S * cells] * calls)
            rows.append(times.row(f"{cells:,} cells, {what}", "limit", "at most", 1.0))

        add("dry run before the first", dry)
        write_cells(file, folder / "many")
        add("dry run, all done", dry)
        add("status, all done", call("status", str(folder)))
    publish(rows, given)


if __name__ == "__main__":
    main()
