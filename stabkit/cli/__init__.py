"""The command line: `parser` says what each verb takes, and the module of its name does it.

Nothing here imports more than argparse until a verb runs, so that `stabkit --help` is quick.
"""

import os
import sys
from contextlib import suppress

from stabkit.cli.parser import VERBS, build_parser, no_such_verb
from stabkit.garbage import leave_garbage_at_exit
from stabkit.printing import raise_failed, safe


def main(argv: list[str] | None = None) -> int:
    """Carry out a command and return its exit code.

    0: done. 1: the work failed. 2: the request was wrong.
    """
    if argv is None:
        leave_garbage_at_exit()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe(sys.stdout), safe(sys.stderr)
    try:
        return _carry_out(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # the reader of stdout is gone
        _drop_output()
        return 1
    except OSError as error:  # the disk behind stdout is full
        _drop_output()
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    finally:
        sys.stdout, sys.stderr = before


def _carry_out(words: list[str]) -> int:
    named = next((word for word in words if not word.startswith("-")), None)
    if not words:  # as a wrong request: in a script, a verb that is empty must not pass as done
        print(build_parser(None).format_help(), end="", file=sys.stderr)
        return 2
    if named == "help":
        words = [word for word in words if word != "help"] + ["--help"]
        named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in VERBS:
        print(f"stabkit: {no_such_verb(named)}", file=sys.stderr)
        return 2
    try:
        try:
            arguments, rest = build_parser(named).parse_known_args(words)
        except SystemExit:  # after `--help`, which argparse prints without a look at errors
            raise_failed(sys.stdout)
            raise
        arguments.overrides, arguments.words = rest, words
        from stabkit.cli.dispatch import dispatch

        return dispatch(arguments)
    finally:
        sys.stdout.flush()  # here, since an error at the end of the interpreter is a traceback


def _drop_output() -> None:
    """Redirect stdout to nowhere, so that the interpreter does not try to write the rest again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
