"""`stabkit watch`: tell a command or a webhook about events of runs while they train."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from stabkit.cli.names import runs_of
from stabkit.cli.request import RequestError
from stabkit.notify import Notifier, check_target
from stabkit.printing import one_line
from stabkit.sweep.display import UNDER_WAY
from stabkit.sweep.news import KINDS, news
from stabkit.sweep.status import Row, status_rows


def act(arguments: argparse.Namespace) -> int:
    """Look at the runs every few seconds, until none is under way; print and send what is new."""
    folder = runs_of(arguments.runs)
    wanted = tuple(arguments.on or KINDS)
    if unknown := sorted(set(wanted) - set(KINDS)):
        raise RequestError(
            f"--on {unknown[0]}: unknown kind of news; there are: {', '.join(KINDS)}"
        )
    for target in arguments.alert:
        try:
            check_target(target)
        except ValueError as error:
            raise RequestError(f"--alert: {error}") from error
    if not 0.1 <= arguments.every <= 3600:
        raise RequestError(f"--every {arguments.every:g}: seconds, from 0.1 to 3600")
    notifier = Notifier(lambda reason: print(f"stabkit: {one_line(reason)}", file=sys.stderr))
    rows = status_rows(folder)
    if not _under_way(rows):
        print(f"stabkit: {one_line(folder)}: no run is under way", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        while _under_way(rows):
            time.sleep(arguments.every)
            before, rows = {row.path: row for row in rows}, status_rows(folder)
            for message in news(before, rows, str(folder)):
                if message["kind"] in wanted:
                    print(one_line(message["text"]), flush=True)
                    for target in arguments.alert:
                        notifier.send(target, message)
    if not notifier.wait(30.0):
        print("stabkit: alerts were still under way and are dropped", file=sys.stderr)
    return 0


def _under_way(rows: Sequence[Row]) -> bool:
    return any(row.state in UNDER_WAY or row.job_state for row in rows)
