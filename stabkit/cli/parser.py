"""What each verb takes."""

import argparse
import os
import sys
from functools import cache

from stabkit import __version__

TYPE_CHECKING = False  # as in stabkit/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def build_parser(named: str | None) -> argparse.ArgumentParser:
    """Knows every verb, and what the `named` one takes."""
    about = (
        "Is this training run secretly unstable, where did it start, what would have prevented it?"
    )
    parser = argparse.ArgumentParser("stabkit", description=about, formatter_class=_formatter)
    parser.add_argument("--version", action="version", version=f"stabkit {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (about, takes, fill) in VERBS.items():
        # no abbreviations: a mistyped option is refused with a suggestion, never guessed
        verb = verbs.add_parser(
            name,
            help=about,
            description=about,
            usage=f"stabkit {name} {takes} [options]",
            allow_abbrev=False,
            formatter_class=_formatter,
            add_help=name == named,
        )
        if name == named:
            fill(verb)
            verb.set_defaults(options=list(verb._option_string_actions))
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=_columns() - 2)


@cache
def _columns() -> int:
    """As shutil.get_terminal_size, which argparse would import and ask for every option."""
    try:
        columns = int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        columns = 0
    if columns <= 0 and sys.__stdout__ is not None:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns
        except (ValueError, OSError):  # closed, or no terminal
            columns = 0
    return columns if columns > 0 else 80


def _train(verb: argparse.ArgumentParser) -> None:
    from stabkit.presets import preset_names

    verb.add_argument("config", help=f"a YAML file, or a preset: {', '.join(preset_names())}")
    verb.add_argument("--run-dir", type=_path, help="the run's folder (default: runs/train/…)")
    _allow_inexact(verb)


def _allow_inexact(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--allow-inexact",
        action="store_true",
        help="go on also on another device or processor, or with other threads or versions",
    )


def _sweep(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", type=_path, help="a sweep file, e.g. sweeps/lr_grid.yaml")
    verb.add_argument("--scale", help="the size to run at (default: the file's first)")
    verb.add_argument("--runs", type=_path, default="runs", help="where run folders go")
    verb.add_argument("--dry-run", action="store_true", help="print what would run, start nothing")
    verb.add_argument(
        "--cluster",
        choices=("auto", "local", "slurm"),
        default="auto",
        help="auto: slurm where the sweep asks for it and sbatch is there, else this machine",
    )
    verb.add_argument("--retry", choices=("failed",), help="also run again what failed")
    _allow_inexact(verb)
    verb.add_argument("--cancel", action="store_true", help="end the SLURM jobs of the sweep")
    verb.add_argument(
        "--cancel-removed", action="store_true", help="end those of runs no longer in the file"
    )
    verb.add_argument(
        "--snapshot", action="store_true", help="jobs run stabkit's code as it is now (SLURM)"
    )
    verb.epilog = (
        "On SLURM, slurm.partition=…, slurm.account=…, slurm.timeout_min=… and the like set what a "
        "run asks for; they come after the sweep file's and after ~/.config/stabkit/slurm.yaml."
    )


def _status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", type=_path)
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb.add_argument("--watch", action="store_true", help="refresh until no run is under way")


def _analyze(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", type=_path, nargs="+", help="any folder above run folders; or two")
    verb.add_argument("--plot", metavar="NAME", help="a figure; `--plot list` names them all")
    verb.add_argument("-o", "--out", type=_path, help="folder for figures (default: RUNS/figures)")
    verb.add_argument(
        "--csv", type=_path, metavar="FILE", help="the summary's table, one row a run"
    )


def _report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", help="a folder above run folders; or a study: lr_grid, its YAML file")
    verb.add_argument("-o", "--out", type=_path, help="the HTML file (default: RUNS/report.html)")
    verb.add_argument("--interactive", action="store_true", help="with charts to zoom (plotly)")


def _evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=_path, help="a run folder; its last checkpoint is evaluated")
    verb.add_argument("--knn", action="store_true", help="the whole training set votes, many k")
    verb.add_argument("--linear", action="store_true", help="linear probe, learning rate swept")
    verb.add_argument("--finetune", action="store_true", help="end to end, also on other data")
    verb.epilog = (
        "Settings and their defaults: data.* and runtime.* (the run's own), seed, knn.k, "
        "knn.temperature, linear.lr, linear.epochs, finetune.lr, finetune.epochs, ...; a wrong one "
        "is answered with the nearest. Results go to the run's evals table."
    )


def _signals(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="*", metavar="NAME", help="levels or signals (default: all)")
    verb.add_argument("--module", help="import this first: it registers signals of your own")


def _export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=_path)
    verb.add_argument("-o", "--out", type=_path, metavar="FILE", help="weights of the backbone")
    verb.add_argument("--encoder", choices=("online", "target"), help="with -o (default: online)")
    verb.add_argument(
        "--tensorboard", type=_path, metavar="FOLDER", help="scalars, evaluations, layers, events"
    )


def _import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "file", type=_path, help="of the official moco-v3 code, or plain timm weights"
    )
    verb.add_argument("config", help="what describes the backbone and the data to evaluate on")
    verb.add_argument("--run-dir", type=_path, help="the run's folder (default: runs/imported/…)")


def _convert(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source",
        type=_path,
        help="a folder of TensorBoard event files or of Lightning's metrics.csv; or a file: event "
        "file, W&B history (CSV, JSON) or chart (CSV), any CSV, Parquet or JSON table with steps",
    )
    verb.add_argument("-o", "--out", type=_path, required=True, metavar="FOLDER")
    verb.add_argument("--row-step", action="store_true", help="the number of a row is its step")
    verb.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=TARGET",
        help="where a series goes: step, skip, another name, scalar:NAME, eval:NAME, "
        "percent:NAME, layer:NAME[:DEPTH]; e.g. val/acc1=knn_heldout; may be given many times",
    )
    verb.add_argument("--n", type=int, help="how many samples every evaluation took")
    verb.add_argument("--chance", type=float, help="the accuracy of guessing, e.g. 0.1")
    verb.add_argument(
        "--format",
        choices=("tensorboard", "wandb", "lightning", "table"),
        help="only where it cannot be told from the source",
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="say what would go where, write nothing"
    )


def _path(word: str) -> "Path":
    from pathlib import Path  # slow to import, and no help needs it

    return Path(word)


# verb -> what it does, what it takes in short, what it takes
VERBS: "dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]]" = {
    "train": ("one run", "CONFIG [key=value ...]", _train),
    "sweep": ("every run of a sweep file", "FILE [key=value ...]", _sweep),
    "status": ("how the runs below a folder stand", "RUNS", _status),
    "analyze": (
        "a summary in words, two sets of runs compared, or a figure",
        "RUNS [RUNS]",
        _analyze,
    ),
    "report": ("one page with all of it", "RUNS|STUDY", _report),
    "evaluate": (
        "how good a run's backbone is",
        "RUN --knn|--linear|--finetune [key=value ...]",
        _evaluate,
    ),
    "signals": (
        "what a Monitor can measure: formula, cost, what it reveals",
        "[NAME ...]",
        _signals,
    ),
    "export": (
        "a run's backbone as a timm file, or its record as TensorBoard events",
        "RUN -o FILE | RUN --tensorboard FOLDER",
        _export,
    ),
    "import": ("a run out of a file of weights", "FILE CONFIG [key=value ...]", _import),
    "convert": (
        "a run out of another tool's logs",
        "SOURCE -o FOLDER [--map NAME=TARGET ...]",
        _convert,
    ),
}
