"""`stabkit status`."""

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict

from stabkit.cli.names import runs_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.printing import bare_stdout
from stabkit.sweep.display import UNDER_WAY, status_lines, watch, whole_table
from stabkit.sweep.status import status_rows


def act(arguments: argparse.Namespace) -> int:
    """Print how the runs below a folder stand."""
    folder = runs_of(arguments.runs)
    if arguments.watch and arguments.json:
        raise RequestError("--json prints once, and --watch goes on; give one of them")
    if arguments.watch:
        with suppress(KeyboardInterrupt):
            watch(lambda: status_rows(folder))
        say_next("stabkit", "analyze", arguments.runs, on_terminals=True)
        return 0
    rows = status_rows(folder)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif not sys.stdout.isatty():
        print("\n".join(status_lines(rows)))
    elif rows:
        from rich.console import Console

        console = Console(file=bare_stdout())
        with console.status("judging the runs that are done", spinner="line", refresh_per_second=2):
            table = whole_table(rows, console.width)
        console.print(table)
        if any(row.state in UNDER_WAY for row in rows):
            say_next("stabkit", "status", arguments.runs, "--watch")
        else:
            say_next("stabkit", "analyze", arguments.runs)
    else:
        print(f"{folder}: no run in it or below it")
        say_next("stabkit", "train", "tiny")
    return 0
