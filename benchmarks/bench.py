"""Run the benchmarks of speed and fill in the tables of README.md.

    python -m benchmarks.bench              # all, on the CPU
    python -m benchmarks.bench views knn    # these two; the other tables stay
    python -m benchmarks.bench --record     # short ones too, for `make test-speed`

`make bench` installs the peers first. results.json keeps the rows of every table. If a script
fails, its old rows stay, its name is printed at the end, and the exit status is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.pages import filled
from benchmarks.lib.results import ROOT, markdown, read_rows, row_cells

FOLDER = Path(__file__).parent
README, RECORD = FOLDER / "README.md", FOLDER / "results.json"
SECTIONS = (  # name, module, heading in README.md
    ("step", "speed.step", "The training step"),
    ("views", "speed.views", "Views"),
    ("decode", "speed.decode", "Decoding"),
    ("knn", "speed.knn", "k nearest neighbors"),
    ("linear_probe", "speed.linear_probe", "Linear probe"),
    ("grid", "speed.grid", "Grids of runs"),
    ("distributed", "speed.distributed", "Several processes"),
    ("startup", "speed.startup", "Start"),
    ("kept_states", "speed.kept_states", "Kept states"),
    ("status", "speed.status", "Status of 1,000 runs"),
    ("many_cells", "speed.many_cells", "Ten thousand cells"),
    ("analyze", "speed.analyze", "Analysis and report"),
    ("growth", "growth.run", "How it grows"),
)
MODULES = {name: f"benchmarks.{module}" for name, module, _ in SECTIONS}
NAMES = tuple(MODULES)
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
Record = dict[str, dict[str, Any]]  # script -> "full" and "quick" -> what `publish` wrote


def main() -> None:
    options = argparse.ArgumentParser(description="Run benchmarks; fill in README.md.")
    options.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join(NAMES))
    options.add_argument(
        "--record", action="store_true", help="run the short version too, for make test-speed"
    )
    given = options.parse_args()
    chosen = given.scripts or NAMES
    if unknown := [name for name in chosen if name not in NAMES]:
        options.error(f"no script {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    record = read_record(RECORD)
    page(README.read_text(), record)  # refuse a page without markers before the work starts
    began, failed = time.perf_counter(), []
    for name in chosen:
        load, started = os.getloadavg()[0], time.perf_counter()
        try:
            measured = {"full": run(name)} | (
                {"quick": run(name, "--quick")} if given.record else {}
            )
            record[name] = record.get(name, {}) | measured
        except RuntimeError as error:
            failed.append(name)
            print(error, file=sys.stderr, flush=True)
        else:
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            README.write_text(page(README.read_text(), record))
        seconds = time.perf_counter() - started
        print(f"--- {name}: {seconds:.0f} s, begun at a load of {load:.1f}\n", flush=True)
    print(f"{len(chosen)} scripts: {(time.perf_counter() - began) / 60:.1f} minutes")
    if failed:
        raise SystemExit(f"failed, so their old tables stay: {', '.join(failed)}")


def run(name: str, *options: str, folder: Path = ROOT) -> dict[str, Any]:
    """Return what a script publishes. If it fails, raise RuntimeError with its output."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows.json"
        command = [sys.executable, "-m", MODULES[name], *options, "--json", str(file)]
        environment = os.environ | ONE_THREAD
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or not file.exists():
            status, words = done.returncode, (done.stderr or done.stdout)[-2000:]
            raise RuntimeError(f"{MODULES[name]} failed with exit status {status}:\n{words}")
        print(done.stdout, flush=True)
        content: dict[str, Any] = json.loads(file.read_text())
        return content


def read_record(file: Path) -> Record:
    content: Record = json.loads(file.read_text()) if file.exists() else {}
    return content


def page(text: str, record: Record) -> str:
    """Return README.md with the table of every recorded script and the table of goals."""
    text = filled(text, "goals", goals(record), README)
    for name in NAMES:
        table = markdown(record[name]["full"]) if name in record else "Not run."
        text = filled(text, name, table, README)
    return text


def goals(record: Record) -> str:
    """Return the table of all rows that have a goal, in the order of the sections."""
    lines = ["| section | what | peer | ratio (95 %) | goal | met |", "| --- " * 6 + "|"]
    for name, _, heading in SECTIONS:
        link = f"[{heading}](#{heading.lower().replace(',', '').replace(' ', '-')})"
        for row in read_rows(record[name]["full"]) if name in record else []:
            if row.goal is not None:
                lines.append(f"| {link} | {row.what} | {row.peer} | {row_cells(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
