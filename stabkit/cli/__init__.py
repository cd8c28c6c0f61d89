"""The command line: `parser` says what each verb takes, the module of its name does it.

Nothing here imports more than argparse until a verb is to be carried out: `stabkit --help` answers
at once.
"""

from stabkit.cli.parser import build_parser


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the work failed, 2 the request was wrong."""
    arguments, rest = build_parser().parse_known_args(argv)
    arguments.overrides = rest
    from stabkit.cli.dispatch import dispatch

    return dispatch(arguments)
