"""Run `stabkit analyze`: summarize runs, compare two sets, or draw a figure."""

import argparse
import sys
from pathlib import Path

from stabkit.cli.logs import beside, is_log, logs_as_runs
from stabkit.cli.names import runs_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError, diagnose_runs, open_runs
from stabkit.config import suggest
from stabkit.rundir import claim_for_file, refuse_link

PICTURES = (".png", ".pdf", ".svg", ".csv")  # names of files, where that of a folder is due


def act(arguments: argparse.Namespace) -> int:
    """Analyze run folders; a log of another tool is converted to one that is removed afterwards."""
    if arguments.plot == "list":
        return _list_plots(arguments.runs)
    if not arguments.runs:
        raise RequestError("analyze needs a folder of runs, the name of a study, or a log")
    for word in arguments.runs:
        if "=" in Path(word).name and "/" not in word and not Path(word).exists():
            raise RequestError(f"analyze takes no {word!r}")
    arguments.runs = [runs_of(word) for word in arguments.runs]
    first = arguments.runs[0]
    if arguments.plot is not None and arguments.out is None and is_log(first):
        arguments.out = beside(first, "figures")
    if arguments.csv is not None and arguments.plot is None:
        claim_for_file(arguments.csv, b"cell,seed,state,verdict,")
    with logs_as_runs(arguments.runs) as folders:
        return (
            _summarize(arguments, folders) if arguments.plot is None else _draw(arguments, folders)
        )


def _list_plots(named: list[str]) -> int:
    from stabkit.analyze.plots import PLOTS

    print("\n".join(f"{name:<16}{plot.about}" for name, plot in PLOTS.items()))
    say_next("stabkit", "analyze", *(named or ["RUNS"]), "--plot", "knn", on_terminals=True)
    return 0


def _draw(arguments: argparse.Namespace, folders: dict[Path, Path]) -> int:
    from stabkit.analyze.does_not_apply import DoesNotApplyError
    from stabkit.analyze.plots import PLOTS, draw

    if arguments.plot not in PLOTS:
        raise RequestError(f"no plot {arguments.plot!r}{suggest(arguments.plot, list(PLOTS))}")
    if arguments.csv is not None:
        raise RequestError("--csv is the summary's table; a figure writes its own beside it")
    if len(arguments.runs) > 1:
        raise RequestError(
            f"--plot {arguments.plot} takes one folder of runs, got {len(arguments.runs)}"
        )
    if arguments.out is not None and arguments.out.suffix.lower() in PICTURES:
        raise RequestError(
            f"--out {arguments.out} would be a folder: it gets {arguments.plot}.png, .pdf and .csv"
        )
    first = arguments.runs[0]
    runs = open_runs(folders[first], first).as_of_now()
    own = runs.path / "figures"
    if arguments.out is None:
        refuse_link(own)  # a folder that the user names may be one
    try:
        found = diagnose_runs(runs, arguments.metric)
        paths = draw(arguments.plot, found, arguments.out or own)
    except DoesNotApplyError as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, paths)))
    say_next("stabkit", "report", str(first), on_terminals=True)
    return 0


def _summarize(arguments: argparse.Namespace, folders: dict[Path, Path]) -> int:
    sets = [open_runs(folders[path], path).as_of_now() for path in arguments.runs]
    if len(sets) > 2:
        raise RequestError(f"analyze takes one folder of runs, or two to compare, got {len(sets)}")
    if len(sets) == 2:
        if len({path.resolve() for path in arguments.runs}) == 1:
            raise RequestError(f"{arguments.runs[1]}: is both sets; name two folders to compare")
        from stabkit.analyze.two_sets import compare_sets

        if arguments.csv is not None:
            raise RequestError("--csv is the table of one folder of runs, got 2")
        first, second = (diagnose_runs(runs, arguments.metric) for runs in sets)
        print(compare_sets(first, second))
        say_next("stabkit", "report", str(arguments.runs[0]))
        return 0
    from stabkit.analyze.csv_file import write_csv
    from stabkit.analyze.summary import describe, run_table
    from stabkit.cores import usable_cores

    found = diagnose_runs(sets[0], arguments.metric, usable_cores())
    table = run_table(found)
    if arguments.csv is not None:
        write_csv(table, arguments.csv)
    print(describe(found, table))
    say_next("stabkit", "report", str(arguments.runs[0]))
    return 0
