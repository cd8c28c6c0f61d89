"""`stabkit sweep`."""

import argparse
import shutil

from stabkit.cli.names import sweep_file
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.config import ConfigError, parse_overrides, unusable_path
from stabkit.sweep.folders import refuse_foreign
from stabkit.sweep.grid import SLURM, Sweep, load_sweep
from stabkit.sweep.launch import launch, print_plan


def act(arguments: argparse.Namespace) -> int:
    """Run, submit, show or cancel a sweep."""
    slurm_words = [word for word in arguments.overrides if word.startswith(SLURM)]
    run_words = [word for word in arguments.overrides if word not in slurm_words]
    if arguments.allow_inexact:
        run_words.append("runtime.allow_inexact=true")
    slurm_settings = parse_overrides([word.removeprefix(SLURM) for word in slurm_words])
    file = sweep_file(arguments.file)
    sweep = load_sweep(file, arguments.scale, run_words)
    problems = dict.fromkeys(p for run in sweep.runs if (p := unusable_path(run.config)))
    if problems:
        raise ConfigError(str(file), list(problems))
    folder = arguments.runs / sweep.name
    if arguments.cancel or arguments.cancel_removed:
        from stabkit.sweep.cancel import cancel_removed, cancel_sweep

        cancel = cancel_sweep if arguments.cancel else cancel_removed
        return cancel(sweep, folder, arguments.dry_run)
    retry_failed = arguments.retry == "failed"
    on_slurm = arguments.cluster == "slurm" or (arguments.cluster == "auto" and _for_slurm(sweep))
    if not on_slurm and (slurm_words or arguments.snapshot):
        raise RequestError(f"{(slurm_words or ['--snapshot'])[0]} needs --cluster slurm")
    refuse_foreign(sweep, folder)
    if arguments.dry_run:
        print_plan(sweep, folder)
    if not on_slurm and not arguments.dry_run:
        code = launch(sweep, folder, retry_failed)
        say_next("stabkit", "status" if code else "analyze", str(folder))
        return code
    if on_slurm:
        from stabkit.sweep.submit import print_submission, submit

        if not arguments.dry_run:
            code = submit(sweep, folder, slurm_settings, retry_failed, arguments.snapshot)
            if code == 0:
                say_next("stabkit", "status", str(folder), "--watch")
            return code
        print_submission(sweep, folder, slurm_settings, retry_failed)
    say_next("stabkit", *(word for word in arguments.words if word != "--dry-run"))
    return 0


def _for_slurm(sweep: Sweep) -> bool:
    return shutil.which("sbatch") is not None and any(run.slurm for run in sweep.runs)
