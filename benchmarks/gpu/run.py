"""Run the GPU program: every measurement that needs a GPU, the most valuable first.

    python -m benchmarks.gpu.run                              # all parts, one after the other
    python -m benchmarks.gpu.run --part tests --part monitor  # some
    python -m benchmarks.gpu.run --list                       # parts, limits, how each stands
    python -m benchmarks.gpu.run --device cpu --quick         # the rehearsal, on any machine

One call ends within --seconds (default 530). Repeat the call to continue after the last measurement
on disk. A part that is complete for these sources and this device is skipped. The exit status is 0
when everything is measured, and 1 when something failed or is left.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.circumstances import find_circumstances
from benchmarks.gpu.measurements import options, read, same
from benchmarks.gpu.page import write_page
from benchmarks.lib.results import ROOT

FOLDER = Path(__file__).parent
PARTS = {  # seconds that a call gives to each part at most
    "tests": 240,
    "monitor": 300,
    "step": 300,
    "grids": 240,
    "study": 520,
}
LEAST = 30.0  # seconds; with less left, no part is started


def main() -> None:
    given = arguments()
    facts = find_circumstances(given.device, given.quick)
    if given.list:
        for part, seconds in PARTS.items():
            print(f"{part:<9}at most {seconds} s a call; {standing(given.results, part, facts)}")
        return
    ends = time.monotonic() + given.seconds
    left = []
    for part in given.part or PARTS:
        if standing(given.results, part, facts) == "complete":
            print(f"{part}: complete for these sources and {facts['device']}", flush=True)
            continue
        seconds = min(PARTS[part], ends - time.monotonic())
        if seconds < LEAST or not run_part(part, given, seconds):
            left.append(part)
        write_page(page_file(given), given.results, PARTS)
    print(f"Left: {', '.join(left)}. The same command goes on." if left else "All is measured.")
    raise SystemExit(bool(left))


def arguments() -> argparse.Namespace:
    parser = options(__doc__ or "", needs_results=False)
    parser.set_defaults(seconds=530.0)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given repeatedly")
    parser.add_argument("--list", action="store_true", help="the parts, and how each stands")
    given = parser.parse_args()
    if given.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here; --device cpu --quick is the rehearsal")
    if given.data is not None and not (given.data / "train.parquet").exists():
        parser.error(f"--data {given.data}: there is no train.parquet")
    if given.results is None:
        real = given.device.startswith("cuda") and not given.quick
        given.results = FOLDER / "results" if real else ROOT / "runs" / "gpu-rehearsal"
    given.results = given.results.resolve()
    return given


def page_file(given: argparse.Namespace) -> Path:
    """Return this folder's README, or a page beside the results of a rehearsal."""
    own = given.results == (FOLDER / "results").resolve()
    return FOLDER / "README.md" if own else given.results / "README.md"


def standing(results: Path, part: str, facts: dict[str, object]) -> str:
    content = read(results / f"{part}.json")
    if content is None or not same(content["circumstances"], facts):
        return "not begun"
    done = len(content["measurements"])
    failed = sum(m["failed"] for m in content["measurements"].values())
    if content["complete"]:
        return "complete"
    return f"{done - failed} measured" + (f", {failed} failed" if failed else "")


def run_part(part: str, given: argparse.Namespace, seconds: float) -> bool:
    """Run a part within its time, then kill all its processes. Return whether it is complete."""
    print(f"\n== {part}, at most {seconds:.0f} s", flush=True)
    command: list[str] = [sys.executable, "-m", f"benchmarks.gpu.part_{part}", *words(given)]
    command += ["--seconds", f"{seconds - 5:.0f}"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(seconds + 10)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with suppress(ProcessLookupError):  # also kills what the part left running
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(
        f"== {part}: {'killed, out of time' if code is None else f'exit status {code}'}", flush=True
    )
    return code == 0


def words(given: argparse.Namespace) -> Sequence[str]:
    found = ["--device", given.device, "--results", str(given.results)]
    if given.data is not None:
        found += ["--data", str(given.data)]
    if given.steps is not None:
        found += ["--steps", str(given.steps)]
    return [*found, "--quick"] if given.quick else found


if __name__ == "__main__":
    main()
