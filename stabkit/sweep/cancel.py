"""End the SLURM jobs of a sweep: of its cells, or of runs that are no cells of it any more."""

from collections.abc import Sequence
from pathlib import Path

from stabkit.rundir import RunDir
from stabkit.sweep.grid import Sweep
from stabkit.sweep.queue import cancel, live_jobs
from stabkit.sweep.reconcile import reconcile, removed
from stabkit.sweep.submissions import jobs_folder, read_submitted, settle_notes


def cancel_cells(sweep: Sweep, folder: Path, dry_run: bool) -> int:
    """Exit code 0, also when no job is left. Raises SlurmError."""
    return _cancel([task.rundir for task in reconcile(sweep.cells, folder)], folder, dry_run)


def cancel_removed(sweep: Sweep, folder: Path, dry_run: bool) -> int:
    """Not the job of a cell, which the copy of a cell's folder names as well."""
    of_cells = {read_submitted(task.rundir) for task in reconcile(sweep.cells, folder)}
    others = [run for run in removed(sweep.cells, folder) if read_submitted(run) not in of_cells]
    return _cancel(others, folder, dry_run)


def _cancel(rundirs: Sequence[RunDir], folder: Path, dry_run: bool) -> int:
    """A run that is training saves first: SLURM sends SIGTERM and leaves it `KillWait` seconds."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, so nothing was submitted from here")
    with RunDir(folder).lock():
        jobs = live_jobs()
        for line in [] if dry_run else settle_notes(jobs_folder(folder), jobs):
            print(line)
        submitted = [(run, found.job_id) for run in rundirs if (found := read_submitted(run))]
        alive = [(run, job_id) for run, job_id in submitted if job_id in jobs]
        if not dry_run:
            cancel([job_id for _, job_id in alive])
    said = "would cancel" if dry_run else "cancelled"
    for rundir, job_id in alive:
        print(f"  {said} {job_id:<12}{rundir.path.name}")
    print(f"{said} {len(alive)} jobs; what their runs have saved stays")
    return 0
