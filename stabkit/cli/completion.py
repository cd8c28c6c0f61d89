"""`stabkit completion`: print the script that makes a shell complete verbs and options."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stabkit.analyze.plots.catalog import PLOTS
from stabkit.branch.interventions import READY
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
    _offer_words(parser, shtab.FILE, {"plot": ("list", *PLOTS), "change": READY})
    print(shtab.complete(parser, arguments.shell))
    print(f"# to install it: stabkit completion {arguments.shell} > {FILES[arguments.shell]}")
    return 0


def _offer_words(parser: argparse.ArgumentParser, paths: Any, names: Mapping[str, Any]) -> None:
    """Mark what may follow: the `names` of some options, and a path for every word that may be one.

    zsh and fish offer no paths unless they are told to.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _offer_words(verb, paths, names)
        elif action.dest in names:
            action.choices = names[action.dest]
        elif action.choices is None and (action.type is Path or not action.option_strings):
            marked: Any = action  # shtab reads this attribute
            marked.complete = paths
