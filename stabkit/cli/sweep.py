"""`stabkit sweep`."""

import argparse
import shutil
from typing import Any

from stabkit.cli.request import RequestError
from stabkit.config import ConfigError, parse_overrides, unusable_path
from stabkit.sweep.grid import SLURM, load_sweep
from stabkit.sweep.launch import launch, print_cells
from stabkit.sweep.reconcile import refuse_foreign


def act(arguments: argparse.Namespace) -> int:
    asks = [word for word in arguments.overrides if word.startswith(SLURM)]
    settings = [word for word in arguments.overrides if word not in asks]
    if arguments.allow_inexact:
        settings.append("runtime.allow_inexact=true")
    words = parse_overrides([word.removeprefix(SLURM) for word in asks])
    sweep = load_sweep(arguments.file, arguments.scale, settings)
    problems = dict.fromkeys(p for cell in sweep.cells if (p := unusable_path(cell.config)))
    if problems:
        raise ConfigError(str(arguments.file), list(problems))
    folder = arguments.runs / sweep.name
    if arguments.cancel or arguments.cancel_removed:
        from stabkit.sweep.cancel import cancel_cells, cancel_removed

        cancel = cancel_cells if arguments.cancel else cancel_removed
        return cancel(sweep, folder, arguments.dry_run)
    retry = arguments.retry == "failed"
    on_slurm = arguments.cluster == "slurm" or (arguments.cluster == "auto" and _for_slurm(sweep))
    if not on_slurm and (asks or arguments.snapshot):
        raise RequestError(f"{(asks or ['--snapshot'])[0]} needs --cluster slurm")
    refuse_foreign(sweep, folder)
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
