"""`stabkit convert`: call the conversion and print what went where."""

import argparse
from collections.abc import Sequence

from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.convert.convert import convert
from stabkit.convert.replace import command
from stabkit.convert.series import ConvertError
from stabkit.convert.words import in_detail, in_short


def act(arguments: argparse.Namespace) -> int:
    """Convert a log to run folders."""
    out, source = arguments.out, arguments.source
    try:
        runs = convert(
            source, out, arguments.map, arguments.chance, arguments.n, arguments.format,
            arguments.dry_run, arguments.row_step, arguments.force,
        )  # fmt: skip
    except ConvertError as error:
        tried = f". Try: {_again(arguments, error.options)}" if error.options else ""
        raise RequestError(f"{error}{tried}") from None
    print("\n".join(in_detail(runs) if arguments.dry_run else in_short(source, runs)))
    if options := list(dict.fromkeys(option for run in runs for option in run.plan.options)):
        written = not arguments.dry_run
        print(f"If a guess is wrong: {_again(arguments, options, force=written)}")
    if not arguments.dry_run:
        say_next("stabkit", "analyze", str(out))
    return 0


def _again(arguments: argparse.Namespace, more: Sequence[str], force: bool = False) -> str:
    """Return the command as it was given, with more options."""
    given = [f"--map={pair}" for pair in arguments.map]
    for name in ("n", "chance", "format"):
        if (value := getattr(arguments, name)) is not None:
            given.append(f"--{name}={value}")
    for name in ("row_step", "dry_run", "force"):
        if getattr(arguments, name):
            given.append(f"--{name.replace('_', '-')}")
    return command(arguments.source, arguments.out, given, more, force)
