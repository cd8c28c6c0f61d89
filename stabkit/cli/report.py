"""Run `stabkit report`: write the page on a study."""

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stabkit.cli.logs import beside, is_log, logs_as_runs
from stabkit.cli.names import runs_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError, diagnose_runs, open_runs
from stabkit.printing import GENERATOR
from stabkit.rundir import claim_for_file

if TYPE_CHECKING:
    from stabkit.store.reader import StoredRuns


def act(arguments: argparse.Namespace) -> int:
    """Write the page of run folders, or of a log of another tool, which is converted for it."""
    folder = runs_of(arguments.runs)
    own = beside(folder, "report.html") if is_log(folder) else folder / "report.html"
    out = arguments.out or own
    if out.is_dir():
        raise RequestError(f"{out}: is a folder; name a file, e.g. {out / 'report.html'}")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent} to write it to")
    claim_for_file(out, GENERATOR.encode())
    if arguments.interactive and find_spec("plotly") is None:
        extra = "pip install 'stabkit[interactive]'"
        raise RequestError(f"--interactive draws with plotly, which is not installed: {extra}")
    with logs_as_runs([folder]) as folders:
        runs = open_runs(folders[folder], folder).as_of_now()
        return _write(runs, out, arguments.interactive, arguments.metric)


def _write(runs: "StoredRuns", out: Path, interactive: bool, metric: str | None) -> int:
    from stabkit.analyze.report.page import write_report
    from stabkit.branch.judge.report_section import preventions
    from stabkit.cores import usable_cores

    found = diagnose_runs(runs, metric, usable_cores())
    write_report(found, out, interactive, preventions(found))
    print(out)
    if opener := shutil.which("open" if sys.platform == "darwin" else "xdg-open"):
        say_next(Path(opener).name, str(out), on_terminals=True)
    return 0
