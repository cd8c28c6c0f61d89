"""`stabkit status`."""

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict

from stabkit.printing import bare_stdout
from stabkit.sweep.display import status_line, status_table, watch
from stabkit.sweep.status import status_rows


def act(arguments: argparse.Namespace) -> int:
    """Print how the runs below a folder stand."""
    if arguments.watch:
        with suppress(KeyboardInterrupt):
            watch(lambda: status_rows(arguments.runs))
        return 0
    rows = status_rows(arguments.runs)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(file=bare_stdout()).print(status_table(rows))
    else:
        print("\n".join(status_line(row) for row in rows))
    return 0
