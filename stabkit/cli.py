"""The command line: verbs parse, call and print. Exit codes: 0 done, 1 the work failed, 2 the
request was wrong."""

import argparse
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import stabkit
from stabkit.config import ConfigError, preset_names, suggest
from stabkit.rundir import LeftOutWarning, RunBusyError, RunDir
from stabkit.sweep.queue import SlurmError

LINES = 50  # of what was left out: the cause of more is one and the same


class RequestError(Exception):
    """The request was wrong; the message says what would be right."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = rest
    try:
        _refuse_unknown(arguments, rest)
        with _left_out_by_line():
            return int(arguments.act(arguments))
    except BrokenPipeError:
        return 1
    except (RequestError, ConfigError, RunBusyError, FileNotFoundError) as error:
        if _speaks():
            print(f"stabkit: {error}", file=sys.stderr)
        return 2
    except (SlurmError, OSError) as error:  # of which: a disk that is full or read-only
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = arguments.verb in ("train", "sweep")
        end = "; the same command goes on from the last checkpoint" if goes_on else ""
        if _speaks():
            print(f"stabkit: stopped{end}", file=sys.stderr)
        return 1


@contextmanager
def _left_out_by_line() -> Iterator[None]:
    """What was left out is said once, in a line; other warnings look as ever."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", LeftOutWarning)
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            *rest: Any,
            **more: Any,
        ) -> None:
            if not issubclass(category, LeftOutWarning):
                show_others(message, category, filename, lineno, *rest, **more)
            elif str(message) not in said:
                said.add(str(message))
                if len(said) <= LINES:
                    print(f"stabkit: {message}", file=sys.stderr)

        warnings.showwarning = show
        try:
            yield
        finally:
            if len(said) > LINES:
                print(f"stabkit: ... and {len(said) - LINES:,} more left out", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    about = (
        "Is this training run secretly unstable, where did it start, what would have prevented it?"
    )
    parser = argparse.ArgumentParser(prog="stabkit", description=about)
    parser.add_argument("--version", action="version", version=f"stabkit {stabkit.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _add_verb(verbs, "train", "one run", "CONFIG [key=value ...]", _train)
    verb.add_argument("config", help=f"a YAML file, or a preset: {', '.join(preset_names())}")
    verb.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/train/…)")

    verb = _add_verb(verbs, "sweep", "every run of a sweep file", "FILE [key=value ...]", _sweep)
    verb.add_argument("file", type=Path, help="a sweep file, e.g. sweeps/lr_grid.yaml")
    verb.add_argument("--scale", help="the size to run at (default: the file's first)")
    verb.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
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

    verb = _add_verb(verbs, "status", "how the runs below a folder stand", "RUNS", _status)
    verb.add_argument("runs", type=Path)
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb.add_argument("--watch", action="store_true", help="refresh until no run is under way")

    about = "a summary in words, two sets of runs compared, or a figure"
    verb = _add_verb(verbs, "analyze", about, "RUNS [RUNS]", _analyze)
    verb.add_argument("runs", type=Path, nargs="+", help="any folder above run folders; or two")
    verb.add_argument("--plot", metavar="NAME", help="a figure; `--plot list` names them all")
    verb.add_argument("-o", "--out", type=Path, help="folder for figures (default: RUNS/figures)")
    verb.add_argument("--csv", type=Path, metavar="FILE", help="the summary's table, one row a run")

    verb = _add_verb(verbs, "report", "one page with all of it", "RUNS|STUDY", _report)
    verb.add_argument("runs", help="a folder above run folders; or a study: lr_grid, its YAML file")
    verb.add_argument("-o", "--out", type=Path, help="the HTML file (default: RUNS/report.html)")
    verb.add_argument("--interactive", action="store_true", help="with charts to zoom (plotly)")

    takes = "RUN --knn|--linear|--finetune [key=value ...]"
    verb = _add_verb(verbs, "evaluate", "how good a run's backbone is", takes, _evaluate)
    verb.add_argument("run", type=Path, help="a run folder; its last checkpoint is evaluated")
    verb.add_argument("--knn", action="store_true", help="the whole training set votes, many k")
    verb.add_argument("--linear", action="store_true", help="linear probe, learning rate swept")
    verb.add_argument("--finetune", action="store_true", help="end to end, also on other data")
    verb.epilog = (
        "Settings and their defaults: data.* and runtime.* (the run's own), seed, knn.k, "
        "knn.temperature, linear.lr, linear.epochs, finetune.lr, finetune.epochs, ...; a wrong one "
        "is answered with the nearest. Results go to the run's evals table."
    )

    about = "what a Monitor can measure: formula, cost, what it reveals"
    verb = _add_verb(verbs, "signals", about, "[NAME ...]", _signals)
    verb.add_argument("names", nargs="*", metavar="NAME", help="levels or signals (default: all)")
    verb.add_argument("--module", help="import this first: it registers signals of your own")

    takes = "RUN -o FILE | RUN --tensorboard FOLDER"
    about = "a run's backbone as a timm file, or its record as TensorBoard events"
    verb = _add_verb(verbs, "export", about, takes, _export)
    verb.add_argument("run", type=Path)
    verb.add_argument("-o", "--out", type=Path, metavar="FILE", help="weights of the backbone")
    verb.add_argument("--encoder", choices=("online", "target"), help="with -o (default: online)")
    verb.add_argument(
        "--tensorboard", type=Path, metavar="FOLDER", help="scalars, evaluations, layers, events"
    )

    takes = "FILE CONFIG [key=value ...]"
    verb = _add_verb(verbs, "import", "a run out of a file of weights", takes, _import)
    verb.add_argument("file", type=Path, help="of the official moco-v3 code, or plain timm weights")
    verb.add_argument("config", help="what describes the backbone and the data to evaluate on")
    verb.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/imported/…)")

    takes = "SOURCE -o FOLDER [--map NAME=TARGET ...]"
    verb = _add_verb(verbs, "convert", "a run out of another tool's logs", takes, _convert)
    verb.add_argument(
        "source",
        type=Path,
        help="a folder of TensorBoard event files or of Lightning's metrics.csv; or a file: event "
        "file, W&B history (CSV, JSON) or chart (CSV), any CSV, Parquet or JSON table with steps",
    )
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
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


def _add_verb(
    verbs: Any, name: str, about: str, takes: str, act: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    usage = f"stabkit {name} {takes} [options]"
    # no abbreviations: a mistyped option is refused with a suggestion, never guessed
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=about, description=about, usage=usage, allow_abbrev=False
    )
    verb.set_defaults(act=act, options=lambda: list(verb._option_string_actions))
    return verb


def _refuse_unknown(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    takes_settings = arguments.verb in ("train", "sweep", "evaluate", "import")
    wrong = [word for word in rest if word.startswith("-") or not takes_settings]
    if wrong:
        hint = suggest(wrong[0].split("=")[0], arguments.options())
        raise RequestError(f"{arguments.verb} takes no {wrong[0]!r}{hint}")


def _train(arguments: argparse.Namespace) -> int:
    from stabkit.config import load_config, missing_data, run_id

    config = load_config(arguments.config, arguments.overrides)
    if problem := missing_data(config):
        raise ConfigError(arguments.config, [problem])
    name = f"{Path(arguments.config).stem}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "train" / name)
    if _speaks():
        print(f"{rundir.path}: training {config.train.steps} steps", flush=True)
    from stabkit.train.loop import train  # torch takes seconds to import: only once it is needed
    from stabkit.train.together import PeerError

    try:
        status = train(config, rundir)
    except (ValueError, OSError) as error:
        print(f"stabkit: {rundir.path}: {error}", file=sys.stderr)
        return 1
    except PeerError:  # said by the process that it happened to
        return 1
    if status.state == "preempted":
        if _speaks():
            where = f"{status.reason} at step {status.step} of {status.steps}"
            print(f"{rundir.path}: {where}; the same command goes on from there", file=sys.stderr)
        return 1
    if not _speaks():
        return 0
    knn = f", held-out kNN {status.knn:.3f}" if status.knn is not None else ""
    reason = f" ({status.reason})" if status.reason else ""
    print(f"{rundir.path}: done at step {status.step} of {status.steps}{knn}{reason}")
    return 0


def _speaks() -> bool:
    """Whether this is the one of torchrun's processes that prints; a single process does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def _sweep(arguments: argparse.Namespace) -> int:
    from stabkit.config import parse_overrides
    from stabkit.sweep.grid import SLURM, load_sweep
    from stabkit.sweep.launch import launch, print_cells

    asks = [word for word in arguments.overrides if word.startswith(SLURM)]
    settings = [word for word in arguments.overrides if word not in asks]
    words = parse_overrides([word.removeprefix(SLURM) for word in asks])
    sweep = load_sweep(arguments.file, arguments.scale, settings)
    folder = arguments.runs / sweep.name
    if arguments.cancel or arguments.cancel_removed:
        from stabkit.sweep.cancel import cancel_cells, cancel_removed

        act = cancel_cells if arguments.cancel else cancel_removed
        return act(sweep, folder, arguments.dry_run)
    retry = arguments.retry == "failed"
    on_slurm = arguments.cluster == "slurm" or (arguments.cluster == "auto" and _for_slurm(sweep))
    if not on_slurm and (asks or arguments.snapshot):
        raise RequestError(f"{(asks or ['--snapshot'])[0]} needs --cluster slurm")
    if arguments.dry_run:
        print_cells(sweep, folder)
    if not on_slurm:
        return 0 if arguments.dry_run else launch(sweep, folder, retry)
    from stabkit.sweep.submit import describe, submit

    if arguments.dry_run:
        describe(sweep, folder, words, retry)
        return 0
    return submit(sweep, folder, words, retry, arguments.snapshot)


def _for_slurm(sweep: Any) -> bool:
    return shutil.which("sbatch") is not None and any(cell.slurm for cell in sweep.cells)


def _status(arguments: argparse.Namespace) -> int:
    from stabkit.sweep.display import status_line, status_table, watch
    from stabkit.sweep.status import status_rows

    if arguments.watch:
        with suppress(KeyboardInterrupt):
            watch(lambda: status_rows(arguments.runs))
        return 0
    rows = status_rows(arguments.runs)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(status_table(rows))
    else:
        print("\n".join(status_line(row) for row in rows))
    return 0


def _analyze(arguments: argparse.Namespace) -> int:
    for folder in arguments.runs:
        if "=" in folder.name and not folder.exists():
            raise RequestError(f"analyze takes no {str(folder)!r}")
    if arguments.plot is None:
        return _summarize(arguments)
    from stabkit.analyze.plots import PLOTS, draw

    if arguments.plot == "list":
        print("\n".join(f"{name:<16}{plot.about}" for name, plot in PLOTS.items()))
        return 0
    if arguments.plot not in PLOTS:
        raise RequestError(f"no plot {arguments.plot!r}{suggest(arguments.plot, list(PLOTS))}")
    if arguments.csv is not None:
        raise RequestError("--csv is the summary's table; a figure writes its own beside it")
    if len(arguments.runs) > 1:
        raise RequestError(
            f"--plot {arguments.plot} takes one folder of runs, got {len(arguments.runs)}"
        )
    runs = _loaded(arguments.runs[0])
    try:
        paths = draw(arguments.plot, runs, arguments.out or runs.path / "figures")
    except ValueError as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, paths)))
    return 0


def _summarize(arguments: argparse.Namespace) -> int:
    sets = [_loaded(folder) for folder in arguments.runs]
    if len(sets) > 2:
        raise RequestError(f"analyze takes one folder of runs, or two to compare, got {len(sets)}")
    if len(sets) == 2:
        from stabkit.analyze.two_sets import compare_sets

        if arguments.csv is not None:
            raise RequestError("--csv is the table of one folder of runs, got 2")
        print(compare_sets(*sets))
        return 0
    from stabkit.analyze.summary import describe, run_table
    from stabkit.analyze.workers import usable_cpus

    table = run_table(sets[0], usable_cpus())
    if arguments.csv is not None:
        table.to_csv(arguments.csv, index=False)
    print(describe(sets[0], table))
    return 0


def _loaded(folder: Path) -> Any:
    runs = stabkit.load(folder)
    if not len(runs):
        raise RequestError(f"{folder}: no run folder in it or below it")
    return runs


def _report(arguments: argparse.Namespace) -> int:
    folder = _study_folder(arguments.runs)
    out = arguments.out or folder / "report.html"
    if out.is_dir():
        raise RequestError(f"{out}: is a folder; name a file, e.g. {out / 'report.html'}")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent} to write it to")
    if arguments.interactive and find_spec("plotly") is None:
        extra = "pip install 'stabkit[interactive]'"
        raise RequestError(f"--interactive draws with plotly, which is not installed: {extra}")
    runs = _loaded(folder)
    from stabkit.analyze.report_page import write_report

    try:
        write_report(runs, out, arguments.interactive)
    except ValueError as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


def _study_folder(word: str) -> Path:
    """The folder of that name, else where the sweep of that file or name has its runs."""
    if Path(word).is_dir():
        return Path(word)
    name, advice = word, ""
    if word.endswith((".yaml", ".yml")):
        from stabkit.sweep.grid import load_sweep

        name, advice = load_sweep(Path(word)).name, f"; `stabkit sweep {word}` makes its runs"
    if (folder := Path("runs") / name).is_dir():
        return folder
    raise RequestError(f"{word}: no such folder, and no {folder} for a study{advice}")


def _evaluate(arguments: argparse.Namespace) -> int:
    from stabkit.config import load_config, missing_data
    from stabkit.train.evaluate_config import METRICS, evaluate_config

    methods = [method for method in METRICS if getattr(arguments, method)]
    if not methods:
        raise RequestError("evaluate needs one or more of --knn, --linear, --finetune")
    rundir = _trained(arguments.run)
    run = load_config(str(rundir.config_file))
    config = evaluate_config(run, arguments.overrides)
    if problem := missing_data(run.model_copy(update={"data": config.data})):
        raise ConfigError("command line", [problem])
    from stabkit.train.evaluate_run import evaluate_run

    def say(line: str) -> None:
        print(f"{rundir.path}: {line}", flush=True)

    try:
        evaluate_run(rundir, run, config, methods, say)
    except RunBusyError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # of which: out of GPU memory, no GPU
        print(f"stabkit: {rundir.path}: {error}", file=sys.stderr)
        return 1
    return 0


def _signals(arguments: argparse.Namespace) -> int:
    from stabkit.monitor.catalog import catalog

    try:
        print(catalog(arguments.names, arguments.module))
    except ValueError as error:
        raise RequestError(str(error)) from None
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if (arguments.out is None) == (arguments.tensorboard is None):
        raise RequestError(
            "export needs one of: -o FILE, for the weights of the backbone; --tensorboard FOLDER, "
            "for what was recorded"
        )
    if arguments.tensorboard is not None:
        return _export_events(arguments)
    encoder: Any = arguments.encoder or "online"
    rundir = _trained(arguments.run)
    from stabkit.train.weights import export

    try:
        count = export(rundir, arguments.out, encoder)
    except (ValueError, OSError) as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {count} tensors of the {encoder} backbone")
    return 0


def _export_events(arguments: argparse.Namespace) -> int:
    from stabkit.convert.export import export_events
    from stabkit.convert.series import ConvertError

    if arguments.encoder is not None:
        raise RequestError("--encoder goes with -o FILE: events hold no weights")
    try:
        count = export_events(stabkit.open_run(arguments.run), arguments.tensorboard)
    except ConvertError as error:
        raise RequestError(str(error)) from None
    folder = arguments.tensorboard
    print(f"{folder}: {count} tags, float32; look at them by `tensorboard --logdir {folder}`")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from stabkit.convert.convert import convert
    from stabkit.convert.series import ConvertError
    from stabkit.convert.words import in_detail, in_short

    out, source = arguments.out, arguments.source
    try:
        runs = convert(
            source, out, arguments.map, arguments.chance, arguments.n, arguments.format,
            arguments.dry_run,
        )  # fmt: skip
    except ConvertError as error:
        raise RequestError(str(error)) from None
    for run in runs:
        print("\n".join(in_detail(run) if arguments.dry_run else in_short(source, run)))
    if not arguments.dry_run:
        print(f"Next: stabkit analyze {out}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from stabkit.config import load_config, run_id

    config = load_config(arguments.config, arguments.overrides)
    if not arguments.file.is_file():
        raise RequestError(f"{arguments.file}: no such file of weights")
    name = f"{arguments.file.name.split('.')[0]}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "imported" / name)
    if rundir.config_file.exists():
        raise RequestError(f"{rundir.path}: is a run already; name another folder by --run-dir")
    from stabkit.train.weights import import_run

    try:
        count = import_run(arguments.file, config, rundir)
    except (ValueError, OSError) as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(f"{rundir.path}: {count} tensors of {arguments.file}, ready for `stabkit evaluate`")
    if config.model.heads:
        print(f"  with {config.model.heads} attention heads, as configured: no weight shows them")
    return 0


def _trained(folder: Path) -> RunDir:
    rundir = RunDir(folder)
    if not rundir.config_file.is_file():
        raise RequestError(f"{folder}: not a run folder, it has no {rundir.config_file.name}")
    if not rundir.checkpoint_file.is_file():
        raise RequestError(f"{folder}: has no checkpoint yet ({rundir.checkpoint_file})")
    return rundir
