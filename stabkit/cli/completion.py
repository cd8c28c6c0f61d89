"""`stabkit completion`: print the script that makes a shell complete verbs and options."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

    parser = build_parser(None, whole=True)
    _offer_paths(parser, shtab.FILE)
    print(shtab.complete(parser, arguments.shell))
    print(f"# to install it: stabkit completion {arguments.shell} > {FILES[arguments.shell]}")
    return 0


def _offer_paths(parser: argparse.ArgumentParser, paths: Any) -> None:
    """Mark every word that may be a path: zsh and fish offer none unless they are told to."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _offer_paths(verb, paths)
        elif action.choices is None and (action.type is Path or not action.option_strings):
            marked: Any = action  # shtab reads this attribute
            marked.complete = paths
