"""Time `stabkit --help` and the first training step.

First it times whole processes of the script that pip makes for the command, in turns with a Python
that does nothing. Then it times trainings of the `tiny` preset in fresh processes, from the moment
torch is imported to the end of the first step. The first pair and the first training are not
counted, so that files are in the page cache.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.results import ROOT, Row, paired, parser, publish
from benchmarks.lib.timing import median_interval

SCRIPT = """import re
import sys
from stabkit.cli import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
COMMANDS = ("--help", "train --help")
LIMIT_S = 5.0


def main() -> None:
    given = parser(__doc__).parse_args()
    pairs, trainings = (8, 1) if given.quick else (31, 6)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "stabkit"
        script.write_text(SCRIPT)
        peer = starts("-c", "pass")
        rows = [
            paired(starts(str(script), *words.split()), peer, pairs).row(
                f"`stabkit {words}`, whole process", "`python -c pass`", "at most"
            )
            for words in COMMANDS
        ]
        runs = [first_step(Path(folder) / f"run{i}", given) for i in range(trainings + 1)][1:]
    publish([*rows, first_step_row(runs)], given, notes=[stages(runs)])


def starts(*words: str) -> Callable[[], Any]:
    command = [sys.executable, *words]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def first_step(folder: Path, given: Namespace) -> dict[str, Any]:
    settings = [f"runtime.device={given.device}", f"runtime.threads={given.threads}"]
    command = [sys.executable, "-m", "benchmarks.speed.first_step", str(folder)]
    threads = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(
        [*command, *settings], check=True, stdout=subprocess.PIPE, text=True, env=threads, cwd=ROOT
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first_step_row(runs: list[dict[str, Any]]) -> Row:
    totals = [run["total"] for run in runs]
    shares = median_interval([total / LIMIT_S for total in totals])
    what = "first step of `tiny`, from torch imported to its end"
    middle = statistics.median(totals)
    return Row(what, f"limit of {LIMIT_S:g} s", middle, LIMIT_S, "s", shares, "at most", 1.0)


def stages(runs: list[dict[str, Any]]) -> str:
    """Return the medians of the stages. What a stage imports counts there."""
    middle = {
        stage: statistics.median(run["seconds"][stage] for run in runs)
        for stage in runs[0]["seconds"]
    }
    torch_s = middle.pop("import torch")
    rest = statistics.median(run["total"] - sum_after_torch(run) for run in runs)
    listed = ", ".join(f"{stage} {1000 * s:.0f}" for stage, s in {**middle, "rest": rest}.items())
    loaded = ", ".join(runs[0]["loaded"]) or "none"
    return (
        f"Until the first step has ended, in ms: {listed}. Before that, `import torch` takes "
        f"{torch_s:.1f} s. By then these of timm, torchvision, torch._dynamo, scipy, pandas "
        f"and matplotlib are imported: {loaded}. Median of {len(runs)}."
    )


def sum_after_torch(run: dict[str, Any]) -> float:
    return float(sum(run["seconds"].values())) - float(run["seconds"]["import torch"])


if __name__ == "__main__":
    main()
