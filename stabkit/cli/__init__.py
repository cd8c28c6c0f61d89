"""The command line: `parser` says what each verb takes, the module of its name does it.

Nothing here imports more than argparse until a verb is to be carried out: `stabkit --help` answers
at once.
"""

import sys

from stabkit.cli.parser import build_parser


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the work failed, 2 the request was wrong."""
    words = sys.argv[1:] if argv is None else argv
    named = next((word for word in words if not word.startswith("-")), None)
    arguments, rest = build_parser(named).parse_known_args(words)
    arguments.overrides = rest
    from stabkit.cli.dispatch import dispatch

    return dispatch(arguments)
