"""`stabkit convert`: call the conversion and print what went where."""

import argparse

from stabkit.cli.request import RequestError
from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from stabkit.convert.words import in_detail, in_short


def act(arguments: argparse.Namespace) -> int:
    """Convert a log to run folders."""
    out, source = arguments.out, arguments.source
    try:
        runs = convert(
            source, out, arguments.map, arguments.chance, arguments.n, arguments.format,
            arguments.dry_run, arguments.row_step,
        )  # fmt: skip
    except ConvertError as error:
        raise RequestError(str(error)) from None
    for run in runs:
        print("\n".join(in_detail(run) if arguments.dry_run else in_short(source, run)))
    if not arguments.dry_run:
        print(f"Next: stabkit analyze {out}")
    return 0
