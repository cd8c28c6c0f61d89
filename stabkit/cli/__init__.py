"""The command line: `parser` says what each verb takes, the module of its name does it.

Nothing here imports more than argparse until a verb is to be carried out: `stabkit --help` answers
at once.
"""

import os
import sys

from stabkit.cli.parser import build_parser
from stabkit.printing import safe


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the work failed, 2 the request was wrong."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe(sys.stdout), safe(sys.stderr)
    try:
        return _carried_out(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # whoever read it has gone
        _drop_the_rest()
        return 1
    except OSError as error:  # the disk behind stdout is full
        _drop_the_rest()
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    finally:
        sys.stdout, sys.stderr = before


def _carried_out(words: list[str]) -> int:
    named = next((word for word in words if not word.startswith("-")), None)
    try:
        arguments, rest = build_parser(named).parse_known_args(words)
        arguments.overrides = rest
        from stabkit.cli.dispatch import dispatch

        return dispatch(arguments)
    finally:
        sys.stdout.flush()  # here: when the interpreter ends it would be a traceback


def _drop_the_rest() -> None:
    """What stdout still holds would be tried once more when the interpreter ends."""
    try:  # noqa: SIM105 - contextlib is slow to import
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
