"""Cancel the SLURM jobs of a sweep, or those of runs that it no longer holds."""

from collections.abc import Sequence
from pathlib import Path

from stabkit.printing import counted
from stabkit.rundir import RunDir
from stabkit.sweep.grid import Sweep
from stabkit.sweep.queue import cancel, live_jobs
from stabkit.sweep.reconcile import reconcile, removed
from stabkit.sweep.submissions import jobs_folder, read_submitted, settle_notes


def cancel_sweep(sweep: Sweep, folder: Path, dry_run: bool) -> int:
    """Cancel the jobs of the sweep's runs.

    Return exit code 0, also when no job is left. Raises SlurmError.
    """
    return _cancel([task.rundir for task in reconcile(sweep.runs, folder)], folder, dry_run)


def cancel_removed(sweep: Sweep, folder: Path, dry_run: bool) -> int:
    """Cancel the jobs of run folders that are not part of the request.

    A copy of a run's folder names the job of the original, which is left alone.
    """
    of_sweep = {read_submitted(task.rundir) for task in reconcile(sweep.runs, folder)}
    others = [run for run in removed(sweep.runs, folder) if read_submitted(run) not in of_sweep]
    return _cancel(others, folder, dry_run)


def _cancel(rundirs: Sequence[RunDir], folder: Path, dry_run: bool) -> int:
    """Cancel jobs; a run that trains saves first, for SLURM sends SIGTERM and waits `KillWait`."""
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
    verb = "would cancel" if dry_run else "canceled"
    for rundir, job_id in alive:
        print(f"  {verb} {job_id:<12}{rundir.path.name}")
    print(f"{verb} {counted(len(alive), 'job')}; what their runs have saved stays")
    return 0
