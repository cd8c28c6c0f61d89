"""The line "Next: ..." after a verb: the command that one would type next."""

import shlex
import sys

from stabkit.cli.request import is_speaker


def say_next(*words: str, on_terminals: bool = False) -> None:
    """Print the command of these words, ready to be copied.

    `on_terminals`: not where the output goes to a file or a program, which expects data only.
    """
    if is_speaker() and (sys.stdout.isatty() or not on_terminals):
        print(f"Next: {shlex.join(words)}", flush=True)
