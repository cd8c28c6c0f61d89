"""`stabkit signals`."""

import argparse

from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.monitor.catalog import catalog


def act(arguments: argparse.Namespace) -> int:
    try:
        print(catalog(arguments.names, arguments.module))
    except ValueError as error:
        raise RequestError(str(error)) from None
    say_next("stabkit", "train", "tiny", "runtime.signals=[attention]", on_terminals=True)
    return 0
