"""Run `stabkit analyze`: summarize runs, compare two sets, or draw a figure."""

import argparse
import sys

from stabkit.cli.request import RequestError, open_runs, refuse_unknown_metric
from stabkit.config import suggest
from stabkit.rundir import claim_for_file, refuse_link


def act(arguments: argparse.Namespace) -> int:
    for folder in arguments.runs:
        if "=" in folder.name and not folder.exists():
            raise RequestError(f"analyze takes no {str(folder)!r}")
    if arguments.plot is None:
        return _summarize(arguments)
    from stabkit.analyze.diagnosis import diagnose
    from stabkit.analyze.plots import PLOTS, draw

    if arguments.plot == "list":
        print("\n".join(f"{name:<16}{plot.about}" for name, plot in PLOTS.items()))
        return 0
    if arguments.plot not in PLOTS:
        raise RequestError(f"no plot {arguments.plot!r}{suggest(arguments.plot, list(PLOTS))}")
    if arguments.csv is not None:
        raise RequestError("--csv is the summary's table; a figure writes its own beside it")
    if len(arguments.runs) > 1:
        raise RequestError(
            f"--plot {arguments.plot} takes one folder of runs, got {len(arguments.runs)}"
        )
    runs = open_runs(arguments.runs[0]).as_of_now()
    refuse_unknown_metric(runs, arguments.metric)
    own = runs.path / "figures"
    if arguments.out is None:
        refuse_link(own)  # a folder that the user names may be one
    try:
        paths = draw(arguments.plot, diagnose(runs, metric=arguments.metric), arguments.out or own)
    except ValueError as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, paths)))
    return 0


def _summarize(arguments: argparse.Namespace) -> int:
    if arguments.csv is not None:
        claim_for_file(arguments.csv)
    sets = [open_runs(folder).as_of_now() for folder in arguments.runs]
    for runs in sets:
        refuse_unknown_metric(runs, arguments.metric)
    if len(sets) > 2:
        raise RequestError(f"analyze takes one folder of runs, or two to compare, got {len(sets)}")
    from stabkit.analyze.diagnosis import diagnose

    if len(sets) == 2:
        from stabkit.analyze.two_sets import compare_sets

        if arguments.csv is not None:
            raise RequestError("--csv is the table of one folder of runs, got 2")
        first, second = (diagnose(runs, metric=arguments.metric) for runs in sets)
        print(compare_sets(first, second))
        return 0
    from stabkit.analyze.csv_file import write_csv
    from stabkit.analyze.summary import describe, run_table
    from stabkit.cores import usable_cores

    found = diagnose(sets[0], usable_cores(), arguments.metric)
    table = run_table(found)
    if arguments.csv is not None:
        write_csv(table, arguments.csv)
    print(describe(found, table))
    return 0
