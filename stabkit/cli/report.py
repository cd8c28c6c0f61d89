"""Run `stabkit report`: write the page on a study."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from stabkit.cli.request import RequestError, open_runs, refuse_unknown_metric
from stabkit.rundir import claim_for_file


def act(arguments: argparse.Namespace) -> int:
    folder = _study_folder(arguments.runs)
    out = arguments.out or folder / "report.html"
    if out.is_dir():
        raise RequestError(f"{out}: is a folder; name a file, e.g. {out / 'report.html'}")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent} to write it to")
    claim_for_file(out)
    if arguments.interactive and find_spec("plotly") is None:
        extra = "pip install 'stabkit[interactive]'"
        raise RequestError(f"--interactive draws with plotly, which is not installed: {extra}")
    runs = open_runs(folder).as_of_now()
    refuse_unknown_metric(runs, arguments.metric)
    from stabkit.analyze.diagnosis import diagnose
    from stabkit.analyze.report.page import write_report
    from stabkit.cores import usable_cores

    try:
        write_report(diagnose(runs, usable_cores(), arguments.metric), out, arguments.interactive)
    except ValueError as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


def _study_folder(word: str) -> Path:
    """Return the folder of that name, or the one that holds the runs of that sweep."""
    if Path(word).is_dir():
        return Path(word)
    name, advice = word, ""
    if word.endswith((".yaml", ".yml")):
        from stabkit.sweep.grid import load_sweep

        name, advice = load_sweep(Path(word)).name, f"; `stabkit sweep {word}` makes its runs"
    if (folder := Path("runs") / name).is_dir():
        return folder
    raise RequestError(f"{word}: no such folder, and no {folder} for a study{advice}")
