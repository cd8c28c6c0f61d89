"""Carry out `stabkit evaluate`."""

import argparse
import sys

from stabkit.cli.names import run_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError, open_trained
from stabkit.config import ConfigError, missing_data, read_config
from stabkit.evaluate.config import METRICS, evaluate_config
from stabkit.rundir import ForeignFolderError, LinkedError, RunBusyError


def act(arguments: argparse.Namespace) -> int:
    """Evaluate the last checkpoint of a run by the methods asked for; return the exit code."""
    methods = [method for method in METRICS if getattr(arguments, method)]
    if not methods:
        raise RequestError("evaluate needs one or more of --knn, --linear, --finetune")
    rundir = open_trained(run_of(arguments.run))
    run = read_config(rundir.config_file)
    config = evaluate_config(run, arguments.overrides)
    if problem := missing_data(run.model_copy(update={"data": config.data})):
        raise ConfigError("command line", [problem])
    # Here, since torch takes seconds to import: a wrong request is refused before.
    from stabkit.evaluate.run import evaluate_run

    def say(line: str) -> None:
        print(f"{rundir.path}: {line}", flush=True)

    try:
        evaluate_run(rundir, run, config, methods, say)
    except (ConfigError, ForeignFolderError, LinkedError, RunBusyError):
        raise
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: out of GPU memory, say
        print(f"stabkit: {rundir.path}: {error}", file=sys.stderr)
        return 1
    say_next("stabkit", "analyze", str(rundir.path), "--plot", "accuracy-table")
    return 0
