"""What each verb takes."""

import argparse

from stabkit import __version__
from stabkit.presets import preset_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def build_parser() -> argparse.ArgumentParser:
    about = (
        "Is this training run secretly unstable, where did it start, what would have prevented it?"
    )
    parser = argparse.ArgumentParser(prog="stabkit", description=about)
    parser.add_argument("--version", action="version", version=f"stabkit {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _add_verb(verbs, "train", "one run", "CONFIG [key=value ...]")
    verb.add_argument("config", help=f"a YAML file, or a preset: {', '.join(preset_names())}")
    verb.add_argument("--run-dir", type=_path, help="the run's folder (default: runs/train/…)")

    verb = _add_verb(verbs, "sweep", "every run of a sweep file", "FILE [key=value ...]")
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

    verb = _add_verb(verbs, "status", "how the runs below a folder stand", "RUNS")
    verb.add_argument("runs", type=_path)
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb.add_argument("--watch", action="store_true", help="refresh until no run is under way")

    about = "a summary in words, two sets of runs compared, or a figure"
    verb = _add_verb(verbs, "analyze", about, "RUNS [RUNS]")
    verb.add_argument("runs", type=_path, nargs="+", help="any folder above run folders; or two")
    verb.add_argument("--plot", metavar="NAME", help="a figure; `--plot list` names them all")
    verb.add_argument("-o", "--out", type=_path, help="folder for figures (default: RUNS/figures)")
    verb.add_argument(
        "--csv", type=_path, metavar="FILE", help="the summary's table, one row a run"
    )

    verb = _add_verb(verbs, "report", "one page with all of it", "RUNS|STUDY")
    verb.add_argument("runs", help="a folder above run folders; or a study: lr_grid, its YAML file")
    verb.add_argument("-o", "--out", type=_path, help="the HTML file (default: RUNS/report.html)")
    verb.add_argument("--interactive", action="store_true", help="with charts to zoom (plotly)")

    takes = "RUN --knn|--linear|--finetune [key=value ...]"
    verb = _add_verb(verbs, "evaluate", "how good a run's backbone is", takes)
    verb.add_argument("run", type=_path, help="a run folder; its last checkpoint is evaluated")
    verb.add_argument("--knn", action="store_true", help="the whole training set votes, many k")
    verb.add_argument("--linear", action="store_true", help="linear probe, learning rate swept")
    verb.add_argument("--finetune", action="store_true", help="end to end, also on other data")
    verb.epilog = (
        "Settings and their defaults: data.* and runtime.* (the run's own), seed, knn.k, "
        "knn.temperature, linear.lr, linear.epochs, finetune.lr, finetune.epochs, ...; a wrong one "
        "is answered with the nearest. Results go to the run's evals table."
    )

    about = "what a Monitor can measure: formula, cost, what it reveals"
    verb = _add_verb(verbs, "signals", about, "[NAME ...]")
    verb.add_argument("names", nargs="*", metavar="NAME", help="levels or signals (default: all)")
    verb.add_argument("--module", help="import this first: it registers signals of your own")

    takes = "RUN -o FILE | RUN --tensorboard FOLDER"
    about = "a run's backbone as a timm file, or its record as TensorBoard events"
    verb = _add_verb(verbs, "export", about, takes)
    verb.add_argument("run", type=_path)
    verb.add_argument("-o", "--out", type=_path, metavar="FILE", help="weights of the backbone")
    verb.add_argument("--encoder", choices=("online", "target"), help="with -o (default: online)")
    verb.add_argument(
        "--tensorboard", type=_path, metavar="FOLDER", help="scalars, evaluations, layers, events"
    )

    takes = "FILE CONFIG [key=value ...]"
    verb = _add_verb(verbs, "import", "a run out of a file of weights", takes)
    verb.add_argument(
        "file", type=_path, help="of the official moco-v3 code, or plain timm weights"
    )
    verb.add_argument("config", help="what describes the backbone and the data to evaluate on")
    verb.add_argument("--run-dir", type=_path, help="the run's folder (default: runs/imported/…)")

    takes = "SOURCE -o FOLDER [--map NAME=TARGET ...]"
    verb = _add_verb(verbs, "convert", "a run out of another tool's logs", takes)
    verb.add_argument(
        "source",
        type=_path,
        help="a folder of TensorBoard event files or of Lightning's metrics.csv; or a file: event "
        "file, W&B history (CSV, JSON) or chart (CSV), any CSV, Parquet or JSON table with steps",
    )
    verb.add_argument("-o", "--out", type=_path, required=True, metavar="FOLDER")
    verb.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=TARGET",
        help="where a series goes: step, skip, another name, scalar:NAME, eval:NAME, "
        "layer:NAME[:DEPTH]; e.g. val/acc1=knn_heldout; may be given many times",
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
    return parser


def _add_verb(verbs: "Any", name: str, about: str, takes: str) -> argparse.ArgumentParser:
    usage = f"stabkit {name} {takes} [options]"
    # no abbreviations: a mistyped option is refused with a suggestion, never guessed
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=about, description=about, usage=usage, allow_abbrev=False
    )
    verb.set_defaults(options=lambda: list(verb._option_string_actions))
    return verb


def _path(word: str) -> "Path":
    from pathlib import Path  # not for --help

    return Path(word)
