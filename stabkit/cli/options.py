"""The options of each verb: a function each adds them to its parser."""

import argparse
from pathlib import Path


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number; write it in digits, as 10000"
        ) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, such as 0.1") from None


def train(verb: argparse.ArgumentParser) -> None:
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


def sweep(verb: argparse.ArgumentParser) -> None:
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


def status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", nargs="?", default="runs", help="a folder, or the name of a study (default: runs)"
    )
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb.add_argument("--watch", action="store_true", help="refresh until no run is under way")


def analyze(verb: argparse.ArgumentParser) -> None:
    from stabkit.analyze.definitions import DEFINITIONS

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
    verb.epilog, verb.formatter_class = DEFINITIONS, argparse.RawDescriptionHelpFormatter


def _metric(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--metric",
        metavar="NAME",
        help="the evaluation that is searched for dips (default: knn_heldout, or else another "
        "held-out accuracy)",
    )


def report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", help="a folder above run folders, the name of a study, or a log of another tool"
    )
    verb.add_argument("-o", "--out", type=Path, help="the HTML file (default: RUNS/report.html)")
    _metric(verb)
    verb.add_argument(
        "--interactive", action="store_true", help="with charts that can be zoomed (plotly)"
    )


def evaluate(verb: argparse.ArgumentParser) -> None:
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


def replay(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id; it is only read")
    verb.add_argument(
        "--at",
        required=True,
        metavar="STEP|EVENT",
        help="a step; or a kind of event: dip is the largest of them, dip:2 the second in time",
    )
    verb.add_argument("--until", type=_whole, metavar="STEP", help="the step to stop before")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="default: replays/RUN-at-EVENT"
    )


def branch(verb: argparse.ArgumentParser) -> None:
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
        "--quick",
        dest="full",
        action="store_false",
        default=False,
        help="three interventions, about 30 branches (the default)",
    )
    size.add_argument("--full", action="store_true", help="every ready intervention, 81 branches")
    verb.add_argument(
        "--from",
        dest="begin",
        nargs="+",
        type=_whole,
        metavar="STEP",
        help="where branches begin (default: four evaluations before the onset); at further steps "
        "only controls and placebos do",
    )
    verb.add_argument("--until", type=_whole, metavar="STEP", help="the step to stop before")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="default: branches/RUN-at-EVENT"
    )
    verb.add_argument("--dry-run", action="store_true", help="print what would run, start nothing")
    verb.add_argument(
        "--cluster", choices=("local", "slurm"), default="local", help="where branches are trained"
    )
    verb.add_argument("--retry", choices=("failed",), help="also run failed branches again")
    _allow_inexact(verb)


def signals(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="*", metavar="NAME", help="levels or signals (default: all)")
    verb.add_argument("--module", help="a module to import first, which registers your own signals")


def export(verb: argparse.ArgumentParser) -> None:
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


def import_(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "file", type=Path, help="a checkpoint of the official moco-v3 code, or plain timm weights"
    )
    verb.add_argument("config", help="a configuration: the backbone, and the data to evaluate on")
    verb.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/imported/…)")


def config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source",
        help="a preset, a YAML file of settings, a sweep file or its name, or a run folder",
    )
    verb.add_argument("--scale", help="of a sweep: the size to run at (default: the first)")


def note(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run folder or its id; it may be training")
    verb.add_argument("step", type=_whole, help="the step that the note is about")
    verb.add_argument("text", help="what to say, in one line")


def watch(verb: argparse.ArgumentParser) -> None:
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
    verb.add_argument("--every", type=_number, default=15.0, help="seconds between two looks")


def completion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish", help="your shell"
    )


def convert(verb: argparse.ArgumentParser) -> None:
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
        "percent:NAME, error:NAME, score:NAME:WORST:BEST, layer:NAME[:DEPTH]; e.g. "
        "val/acc1=knn_heldout; may be given many times",
    )
    verb.add_argument("--n", type=_whole, help="how many samples each evaluation used")
    verb.add_argument("--chance", type=_number, help="the accuracy of guessing, e.g. 0.1")
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
