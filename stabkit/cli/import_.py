"""`stabkit import`."""

import argparse
import sys
from pathlib import Path

from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.config import load_config, run_id
from stabkit.rundir import (
    ForeignFolderError,
    LinkedError,
    RunBusyError,
    RunDir,
    claim_for_import,
)


def act(arguments: argparse.Namespace) -> int:
    """Make a run out of a file of weights."""
    config = load_config(arguments.config, arguments.overrides)
    if not arguments.file.is_file():
        raise RequestError(f"{arguments.file}: no such file of weights")
    name = f"{arguments.file.name.split('.')[0]}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "imported" / name)
    claim_for_import(rundir)
    from stabkit.train.weights import import_run

    try:
        count = import_run(arguments.file, config, rundir)
    except (ForeignFolderError, LinkedError, RunBusyError):
        raise
    except (ValueError, OSError) as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(f"{rundir.path}: {count} tensors of {arguments.file}, ready for `stabkit evaluate`")
    if config.model.heads:
        print(f"  with {config.model.heads} attention heads, as configured: no weight shows them")
    say_next("stabkit", "evaluate", str(rundir.path), "--knn")
    return 0
