"""The verbs and their options."""

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path

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


def _train(verb: argparse.ArgumentParser) -> None:
    from stabkit.presets import preset_names

    verb.add_argument("config", help=f"a YAML file, or a preset: {', '.join(preset_names())}")
    verb.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/train/…)")
    _allow_inexact(verb)
    verb.epilog = (
        "key=value changes a setting, e.g. optim.lr=1e-3. `stabkit config tiny` prints every "
        "setting, with what it means."
    )


def _allow_inexact(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--allow-inexact",
        action="store_true",
        help="resume also on another device or processor, or with other threads or versions",
    )


def _sweep(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", help="a sweep file, or the name of one in sweeps/, e.g. lr_grid")
    verb.add_argument("--scale", help="the size to run at (default: the first in the file)")
    verb.add_argument(
        "--runs",
        type=Path,
        default="runs",
        help="the folder for the sweep's run folders (default: runs)",
    )
    verb.add_argument("--dry-run", action="store_true", help="print what would run, start nothing")
    verb.add_argument(
        "--cluster",
        choices=("auto", "local", "slurm"),
        default="auto",
        help="auto: slurm where the sweep asks for it and sbatch is there, else this machine",
    )
    verb.add_argument("--retry", choices=("failed",), help="also run failed runs again")
    _allow_inexact(verb)
    verb.add_argument("--cancel", action="store_true", help="cancel the SLURM jobs of the sweep")
    verb.add_argument(
        "--cancel-removed",
        action="store_true",
        help="cancel those of runs that are no longer in the file",
    )
    verb.add_argument(
        "--snapshot", action="store_true", help="jobs run stabkit's code as it is now (SLURM)"
    )
    verb.epilog = (
        "On SLURM, slurm.partition=…, slurm.account=…, slurm.timeout_min=… and the like set what a "
        "run asks for. They win over ~/.config/stabkit/slurm.yaml and over the sweep file."
    )


def _status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", nargs="?", default="runs", help="a folder, or the name of a study (default: runs)"
    )
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb.add_argument("--watch", action="store_true", help="refresh until no run is under way")


def _analyze(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs",
        nargs="*",
        help="a folder with run folders at any depth, the name of a study, or a log of another "
        "tool; two are compared",
    )
    verb.add_argument("--plot", metavar="NAME", help="a figure; `--plot list` names them all")
    verb.add_argument("-o", "--out", type=Path, help="folder for figures (default: RUNS/figures)")
    _metric(verb)
    verb.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the summary's table, one row per run"
    )


def _metric(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--metric",
        metavar="NAME",
        help="the evaluation that is searched for dips (default: knn_heldout, or else another "
        "held-out accuracy)",
    )


def _report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", help="a folder above run folders, the name of a study, or a log of another tool"
    )
    verb.add_argument("-o", "--out", type=Path, help="the HTML file (default: RUNS/report.html)")
    _metric(verb)
    verb.add_argument(
        "--interactive", action="store_true", help="with charts that can be zoomed (plotly)"
    )


def _evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id; its last checkpoint is evaluated")
    verb.add_argument(
        "--knn", action="store_true", help="kNN: the whole training set votes, for many k"
    )
    verb.add_argument(
        "--linear",
        action="store_true",
        help="a linear probe, at the best of several learning rates",
    )
    verb.add_argument(
        "--finetune", action="store_true", help="fine-tune end to end, also on other data"
    )
    verb.epilog = (
        "Settings and their defaults: data.* and runtime.* (the run's own), seed, knn.k, "
        "knn.temperature, linear.lr, linear.epochs, finetune.lr, finetune.epochs, ...; for a wrong "
        "one the nearest is suggested. Results go to the run's evals table."
    )


def _replay(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id; it is only read")
    verb.add_argument(
        "--at",
        required=True,
        metavar="STEP|EVENT",
        help="a step; or a kind of event: dip is the largest of them, dip:2 the second in time",
    )
    verb.add_argument("--until", type=int, metavar="STEP", help="the step to stop before")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="default: replays/RUN-at-EVENT"
    )


def _branch(verb: argparse.ArgumentParser) -> None:
    from stabkit.branch.interventions import READY

    verb.add_argument("run", help="a run folder or its id; it is only read")
    verb.add_argument(
        "--at",
        required=True,
        metavar="EVENT|STEP",
        help="a kind of event: dip is the largest of them, dip:2 the second in time; or a step",
    )
    verb.add_argument(
        "--with",
        dest="change",
        nargs="+",
        metavar="CHANGE",
        help=f"what to try: {', '.join(READY)}; or settings, as optim.lr=1e-3; each is one "
        "intervention, and settings that belong together are joined by commas",
    )
    size = verb.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="three interventions, about 30 branches (the default)"
    )
    size.add_argument("--full", action="store_true", help="every ready intervention, 81 branches")
    verb.add_argument(
        "--from",
        dest="begin",
        nargs="+",
        type=int,
        metavar="STEP",
        help="where branches begin (default: four evaluations before the onset); at further steps "
        "only controls and placebos do",
    )
    verb.add_argument("--until", type=int, metavar="STEP", help="the step to stop before")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="default: branches/RUN-at-EVENT"
    )
    verb.add_argument("--dry-run", action="store_true", help="print what would run, start nothing")
    verb.add_argument(
        "--cluster", choices=("local", "slurm"), default="local", help="where branches are trained"
    )
    verb.add_argument("--retry", choices=("failed",), help="also run failed branches again")
    _allow_inexact(verb)


def _signals(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="*", metavar="NAME", help="levels or signals (default: all)")
    verb.add_argument("--module", help="a module to import first, which registers your own signals")


def _export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write the weights of the backbone"
    )
    verb.add_argument("--encoder", choices=("online", "target"), help="with -o (default: online)")
    verb.add_argument(
        "--tensorboard",
        type=Path,
        metavar="FOLDER",
        help="write what was recorded as TensorBoard events",
    )


def _import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "file", type=Path, help="a checkpoint of the official moco-v3 code, or plain timm weights"
    )
    verb.add_argument("config", help="a configuration: the backbone, and the data to evaluate on")
    verb.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/imported/…)")


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source",
        help="a preset, a YAML file of settings, a sweep file or its name, or a run folder",
    )
    verb.add_argument("--scale", help="of a sweep: the size to run at (default: the first)")


def _note(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id; it may be training")
    verb.add_argument("step", type=int, help="the step that the note is about")
    verb.add_argument("text", help="what to say, in one line")


def _watch(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", help="a folder of runs, or a study")
    verb.add_argument(
        "--alert",
        action="append",
        default=[],
        metavar="TARGET",
        help="where news goes: webhook:URL (a JSON object is posted) or 'command: WORDS' (started "
        "without a shell, with the news on its input and as STABKIT_TEXT, ...); may be given often",
    )
    verb.add_argument(
        "--on", action="append", metavar="KIND", help="only this kind; may be given often"
    )
    verb.add_argument("--every", type=float, default=15.0, help="seconds between two looks")


def _completion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shell", choices=("bash", "zsh", "fish"))


def _convert(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source",
        type=Path,
        help="a folder of TensorBoard event files or of Lightning's metrics.csv; or a file: event "
        "file, W&B history (CSV, JSON) or chart (CSV), any CSV, Parquet or JSON table with steps",
    )
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    verb.add_argument("--row-step", action="store_true", help="use the number of a row as its step")
    verb.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=TARGET",
        help="where a series goes: step, skip, another name, scalar:NAME, eval:NAME, "
        "percent:NAME, layer:NAME[:DEPTH]; e.g. val/acc1=knn_heldout; may be given many times",
    )
    verb.add_argument("--n", type=int, help="how many samples each evaluation used")
    verb.add_argument("--chance", type=float, help="the accuracy of guessing, e.g. 0.1")
    verb.add_argument(
        "--format",
        choices=("tensorboard", "wandb", "lightning", "trackio", "neptune", "table"),
        help="only if it cannot be recognized from the source",
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="print what would go where, write nothing"
    )
    verb.add_argument(
        "--force", action="store_true", help="replace what an earlier convert wrote to FOLDER"
    )


# verb -> what it does, what it takes in short, the function that adds its options
VERBS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train one run", "CONFIG [key=value ...]", _train),
    "sweep": ("run every run of a sweep file", "FILE|STUDY [key=value ...]", _sweep),
    "status": (
        "show the state, progress and verdict of the runs in a folder",
        "[RUNS|STUDY]",
        _status,
    ),
    "analyze": (
        "summarize runs in words, compare two sets of runs, or draw a figure",
        "RUNS|STUDY|LOG [RUNS|STUDY|LOG]",
        _analyze,
    ),
    "report": ("write one page: verdicts, events, figures, what to try", "RUNS|STUDY|LOG", _report),
    "watch": (
        "tell a command or a webhook about events and ends of runs while they train",
        "RUNS|STUDY --alert webhook:URL|'command: WORDS'",
        _watch,
    ),
    "note": ("write a note on a step of a run", "RUN STEP TEXT", _note),
    "config": (
        "print every setting of a preset, file, sweep or run, and what it means",
        "PRESET|FILE|STUDY|RUN [key=value ...]",
        _config,
    ),
    "evaluate": (
        "measure how good a run's backbone is",
        "RUN --knn|--linear|--finetune [key=value ...]",
        _evaluate,
    ),
    "replay": (
        "make steps of a run again, bit for bit, and measure everything",
        "RUN --at STEP|EVENT",
        _replay,
    ),
    "branch": (
        "try what would have prevented an event, with controls",
        "RUN --at EVENT|STEP [--with CHANGE ...]",
        _branch,
    ),
    "signals": (
        "show what a Monitor can measure: formula, cost, what it reveals",
        "[NAME ...]",
        _signals,
    ),
    "export": (
        "export a run's backbone as a timm file, or its record as TensorBoard events",
        "RUN -o FILE | RUN --tensorboard FOLDER",
        _export,
    ),
    "import": ("make a run from a file of weights", "FILE CONFIG [key=value ...]", _import),
    "convert": (
        "make a run from another tool's log",
        "SOURCE -o FOLDER [--map NAME=TARGET ...]",
        _convert,
    ),
    "completion": ("print what makes Tab complete verbs and options", "SHELL", _completion),
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
