"""`stabkit completion`: print the script that makes a shell complete verbs and options."""

import argparse
from importlib.util import find_spec

from stabkit.cli.parser import build_parser
from stabkit.cli.request import RequestError

# Where each shell reads such a script when it starts.
FILES = {
    "bash": "~/.local/share/bash-completion/completions/stabkit",
    "zsh": "/usr/local/share/zsh/site-functions/_stabkit",
    "fish": "~/.config/fish/completions/stabkit.fish",
}


def act(arguments: argparse.Namespace) -> int:
    """Print the completion script for a shell."""
    if find_spec("shtab") is None:
        extra = "pip install 'stabkit[completion]'"
        raise RequestError(f"completion is written by shtab, which is not installed: {extra}")
    import shtab

    print(shtab.complete(build_parser(None, whole=True), arguments.shell))
    print(f"# to install it: stabkit completion {arguments.shell} > {FILES[arguments.shell]}")
    return 0
