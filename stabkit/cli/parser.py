"""The verbs: what each does and takes."""

import argparse
import difflib
from collections.abc import Callable

from stabkit.cli import options
from stabkit.version import __version__


def build_parser(named: str | None, whole: bool = False) -> argparse.ArgumentParser:
    """Return a parser that knows every verb, and the options of the `named` one, or of all."""
    about = (
        "Is this training run secretly unstable, where did it start, what would have prevented it?"
    )
    parser = argparse.ArgumentParser(
        "stabkit",
        usage="stabkit VERB ...",
        description=about,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stabkit {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", title="verbs", prog="stabkit"
    )
    for name, (about, takes, fill) in VERBS.items():
        # No abbreviations: a mistyped option is refused with a suggestion, never guessed.
        verb = verbs.add_parser(
            name,
            help=about,
            description=about,
            usage=f"stabkit {name} {takes} [options]",
            allow_abbrev=False,
            add_help=whole or name == named,
        )
        if whole or name == named:
            fill(verb)
            for action in verb._actions:  # an error names a word as the usage above it does
                if not action.option_strings and action.metavar is None:
                    action.metavar = action.dest.upper()
            verb.set_defaults(options=list(verb._option_string_actions))
    return parser


def no_such_verb(word: str) -> str:
    """Return the message on a word that is no verb, with the one that was meant."""
    near = difflib.get_close_matches(word, VERBS, n=1)
    if word in INSTEAD:
        hint = f"; use `stabkit {INSTEAD[word]}`"
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f"; known: {', '.join(VERBS)}"
    return f"no verb {word!r}{hint}"


# verb -> what it does, what it takes in short, the function that adds its options
VERBS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train one run", "CONFIG [key=value ...]", options.train),
    "sweep": ("run every run of a sweep file", "FILE|STUDY [key=value ...]", options.sweep),
    "status": (
        "show the state, progress and verdict of the runs in a folder",
        "[RUNS|STUDY]",
        options.status,
    ),
    "analyze": (
        "summarize runs in words, compare two sets of runs, or draw a figure",
        "RUNS|STUDY|LOG [RUNS|STUDY|LOG]",
        options.analyze,
    ),
    "report": (
        "write one page: verdicts, events, figures, what to try",
        "RUNS|STUDY|LOG",
        options.report,
    ),
    "watch": (
        "tell a command or a webhook about events and ends of runs while they train",
        "RUNS|STUDY --alert webhook:URL|'command: WORDS'",
        options.watch,
    ),
    "note": ("write a note on a step of a run", "RUN STEP TEXT", options.note),
    "config": (
        "print every setting of a preset, file, sweep or run, and what it means",
        "PRESET|FILE|STUDY|RUN [key=value ...]",
        options.config,
    ),
    "evaluate": (
        "measure how good a run's backbone is",
        "RUN --knn|--linear|--finetune [key=value ...]",
        options.evaluate,
    ),
    "replay": (
        "make steps of a run again, bit for bit, and measure everything",
        "RUN --at STEP|EVENT",
        options.replay,
    ),
    "branch": (
        "try what would have prevented an event, with controls",
        "RUN --at EVENT|STEP [--with CHANGE ...]",
        options.branch,
    ),
    "signals": (
        "show what a Monitor can measure: formula, cost, what it reveals",
        "[NAME ...]",
        options.signals,
    ),
    "export": (
        "export a run's backbone as a timm file, or its record as TensorBoard events",
        "RUN -o FILE | RUN --tensorboard FOLDER",
        options.export,
    ),
    "import": ("make a run from a file of weights", "FILE CONFIG [key=value ...]", options.import_),
    "convert": (
        "make a run from another tool's log",
        "SOURCE -o FOLDER [--map NAME=TARGET ...]",
        options.convert,
    ),
    "completion": (
        "print what makes Tab complete verbs and options",
        "bash|zsh|fish",
        options.completion,
    ),
}
# What other programs call a verb, and what to use here.
INSTEAD = {
    "run": "train CONFIG",
    "plot": "analyze RUNS --plot NAME",
    "compare": "analyze RUNS RUNS",
    "list": "status",
    "settings": "config PRESET",
}
EXAMPLES = """\
examples:
  stabkit train tiny                        train a small ViT on this machine, in minutes
  stabkit train tiny optim.lr=4e-2          the same with another learning rate
  stabkit sweep lr_grid                     every run of sweeps/lr_grid.yaml
  stabkit status lr_grid                    how the runs in runs/lr_grid stand
  stabkit analyze lr_grid                   which of them were unstable, and where it began
  stabkit analyze lr_grid --plot knn        a figure; `--plot list` names them all
  stabkit report lr_grid                    all of it on one page
  stabkit analyze training.log              the same for the log of another tool

`stabkit VERB --help` says what a verb takes. A study may be named in place of its folder.
"""
