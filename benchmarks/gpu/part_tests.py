"""Run every test marked `gpu`, file by file."""

import os
import re
import subprocess
import sys
import time

from benchmarks.gpu.measurements import Measurement, open_part, options
from benchmarks.lib.results import ROOT

COLUMNS = ("tests", "passed", "failed", "skipped", "seconds")
MARKED = re.compile(r"pytest\.mark\.gpu|from tests\.gpu import")
FILE_SECONDS = 200.0


def main() -> None:
    given = options(__doc__).parse_args()
    part = open_part("tests", given, COLUMNS)
    ends = time.monotonic() + given.seconds
    for path in marked_files():
        if part.has(path):
            continue
        left = min(FILE_SECONDS, ends - time.monotonic())
        if left < 20:
            raise SystemExit(f"out of time before {path}")
        part.add(path, run_file(path, given.device, left))
    part.finish()


def marked_files() -> list[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if MARKED.search(f.read_text())]


def run_file(path: str, device: str, seconds: float) -> Measurement:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", path]
    began = time.monotonic()
    environment = os.environ | {"STABKIT_TEST_DEVICE": device}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        words, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        words, code = (error.stdout or b"").decode(errors="replace"), -1
    counts = {
        what: int(found[1]) if (found := re.search(rf"(\d+) {what}", words)) else 0
        for what in ("passed", "failed", "error", "skipped")
    }
    failed = counts["failed"] + counts["error"]
    taken = time.monotonic() - began
    cells = [path, str(counts["passed"]), str(failed), str(counts["skipped"]), f"{taken:.0f}"]
    notes = []
    if code != 0:
        cause = f"did not end within {seconds:.0f} s" if code == -1 else f"exit status {code}"
        notes = [f"{path}: {cause}", "```\n" + words[-4000:] + "\n```"]
    return Measurement([cells], notes, {"code": code, "seconds": taken, **counts}, code != 0)


if __name__ == "__main__":
    main()
