"""`stabkit signals`."""

import argparse

from stabkit.cli.request import RequestError
from stabkit.monitor.catalog import catalog


def act(arguments: argparse.Namespace) -> int:
    try:
        print(catalog(arguments.names, arguments.module))
    except ValueError as error:
        raise RequestError(str(error)) from None
    return 0
