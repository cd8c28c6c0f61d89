"""Submit what is missing of a sweep to SLURM, and return without waiting."""

import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import RsyncSnapshot, clean_env

from stabkit.code_state import checkout
from stabkit.config import ConfigError, missing_data
from stabkit.printing import counted
from stabkit.rundir import RunDir
from stabkit.sweep.folders import write_index, write_waiting
from stabkit.sweep.grid import Sweep
from stabkit.sweep.job import TrainJob
from stabkit.sweep.queue import USUAL_ARRAY_SIZE, SlurmError, live_jobs, max_array_size
from stabkit.sweep.reconcile import Task, count_words, print_removed, reconcile, to_do
from stabkit.sweep.sbatch import check_path, chunks, make_executor, sbatch_text, shares
from stabkit.sweep.slurm_request import SlurmRequest, merged, read_defaults
from stabkit.sweep.submissions import (
    jobs_folder,
    note_file,
    settle_notes,
    write_note,
    write_submitted,
)

KEPT = ("SLURM_CONF", "SUBMITIT_PREEMPT_SIGNAL")  # environment variables that a job inherits


def submit(
    sweep: Sweep,
    folder: Path,
    slurm_settings: Mapping[str, Any],
    retry_failed: bool,
    snapshot: bool,
) -> int:
    """Submit, and return exit code 0 when everything left to do is in the queue.

    `slurm_settings` are those of the command line. Raises, before anything is submitted,
    ConfigError, RunBusyError when another launcher works on the sweep, SlurmError.
    """
    shown, folder = folder, folder.resolve()
    check_path(folder)
    _requests(sweep, slurm_settings)
    array_size = max_array_size()
    with ExitStack() as stack:
        stack.enter_context(RunDir(folder).lock())
        jobs = live_jobs()
        where = jobs_folder(folder)
        for line in settle_notes(where, jobs):
            print(line)
        tasks = reconcile(sweep.runs, folder, jobs)
        todo = to_do(tasks, retry_failed)
        print(f"{sweep.name}: {count_words(tasks, todo)}; in {shown}")
        print_removed(sweep, folder)
        for problem in dict.fromkeys(missing_data(task.run.config) for task in todo):
            if problem:  # the nodes may see folders that this machine does not
                print(f"  warning: {problem}, unless the nodes see it")
        if not todo:
            return 0
        cwd = str(Path.cwd())
        if snapshot:
            stack.enter_context(_snapshot(where))
        write_index(sweep, folder)
        arrays = _arrays(todo, slurm_settings, array_size)
        for request, part, _ in arrays:
            for task in part:
                write_waiting(task.run, task.rundir, task.standing, request.cpus_per_task)
        for request, part, parallel in arrays:
            ids = _submit_array(sweep, where, request, part, parallel, cwd)
            print(f"  submitted {counted(len(part), 'run')} as {_span(ids)}")
    print(f"`stabkit status {shown}` shows how they stand; you may close this terminal")
    return 0


def print_submission(
    sweep: Sweep, folder: Path, slurm_settings: Mapping[str, Any], retry_failed: bool
) -> None:
    """Print what `submit` would do now: settings with their origin, arrays, the sbatch text."""
    check_path(folder.resolve())
    for request, origin in _requests(sweep, slurm_settings):
        print("each run asks for:")
        for key, value in request:
            if value not in (None, 0, [], {}):
                print(f"  {key:<22}{value!s:<30}  {origin.get(key, 'default')}")
    if preferences := _preferences():
        shown = ", ".join(f"{key}={value}" for key, value in sorted(preferences.items()))
        print(f"your environment overrides these, since sbatch puts it first: {shown}")
    try:
        jobs, array_size = live_jobs(), max_array_size()
    except SlurmError as error:
        jobs, array_size = {}, USUAL_ARRAY_SIZE
        print(f"{error}; assuming arrays of at most {array_size} and nothing in the queue")
    todo = to_do(reconcile(sweep.runs, folder, jobs), retry_failed)
    name = _job_name(sweep, "XXXXXXXX")
    for request, part, parallel in _arrays(todo, slurm_settings, array_size):
        print(f"\nsbatch, {counted(len(part), 'run')}:\n")
        executor = make_executor(folder.resolve() / ".submitit", request, name, parallel)
        print(sbatch_text(executor, len(part)))


def _requests(
    sweep: Sweep, slurm_settings: Mapping[str, Any]
) -> list[tuple[SlurmRequest, dict[str, str]]]:
    """Return the different requests of the runs. Raises ConfigError for any that is wrong."""
    defaults = read_defaults()
    different = {repr(run.slurm): run.slurm for run in sweep.runs}
    return [merged(slurm, defaults, slurm_settings) for slurm in different.values()]


def _arrays(
    todo: Sequence[Task], slurm_settings: Mapping[str, Any], array_size: int
) -> list[tuple[SlurmRequest, list[Task], int]]:
    """Return for each array the request of its runs, the runs, and how many may run at a time."""
    defaults = read_defaults()
    alike: dict[str, list[Task]] = {}  # runs whose own settings are the same are merged once
    for task in todo:
        alike.setdefault(repr(task.run.slurm), []).append(task)
    requests: dict[str, SlurmRequest] = {}
    groups: dict[str, list[Task]] = {}
    for tasks in alike.values():
        request, _ = merged(tasks[0].run.slurm, defaults, slurm_settings)
        requests[repr(request)] = request
        groups.setdefault(repr(request), []).extend(tasks)
    arrays = []
    for key, tasks in groups.items():
        sizes = chunks(len(tasks), array_size)
        first = 0
        for size, parallel in zip(
            sizes, shares(requests[key].array_parallelism, sizes), strict=True
        ):
            arrays.append((requests[key], tasks[first : first + size], parallel))
            first += size
    return arrays


def _submit_array(
    sweep: Sweep,
    where: Path,
    request: SlurmRequest,
    tasks: Sequence[Task],
    parallel: int,
    cwd: str,
) -> list[str]:
    name = _job_name(sweep, secrets.token_hex(4))
    executor = make_executor(where, request, name, parallel)
    write_note(where, name, [task.rundir.path.name for task in tasks])
    try:
        with _outside_of_any_job(), executor.batch():
            jobs = [
                executor.submit(
                    TrainJob(str(t.rundir.path), cwd, t.run.config.runtime.allow_inexact)
                )
                for t in tasks
            ]
    except (FailedJobError, FailedSubmissionError) as error:
        # The note stays: the job may exist although sbatch failed, so the next launch looks.
        raise SlurmError(f"sbatch: {str(error) or error.__cause__}") from None
    ids = [job.job_id for job in jobs]
    for task, job_id in zip(tasks, ids, strict=True):
        write_submitted(task.rundir, job_id)
    note_file(where, name).unlink()
    return ids


def _job_name(sweep: Sweep, token: str) -> str:
    return f"stabkit-{sweep.name}-{token}"


def _span(ids: Sequence[str]) -> str:
    return f"job {ids[0]}" if len(ids) == 1 else f"array {ids[0].partition('_')[0]}"


def _preferences() -> dict[str, str]:
    """Return the user's settings for every sbatch, without those that stabkit sets itself.

    sbatch puts them above its script.
    """
    ours = {"ARRAY_INX", "ERROR", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "SIGNAL"}
    ours = {f"SBATCH_{name}" for name in ours}
    return {k: v for k, v in os.environ.items() if k.startswith("SBATCH_") and k not in ours}


@contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide the ranks and resources of the job that this process runs in, if any.

    What SLURM's commands need and the user's settings for every sbatch are kept. Those of torchrun
    would have the first process of a job wait for a store that nobody holds.
    """
    kept = {k: v for k, v in os.environ.items() if k in KEPT} | _preferences()
    with clean_env(extra_names=[k for k in os.environ if k.startswith("TORCHELASTIC_")]):
        os.environ.update(kept)
        yield


@contextmanager
def _snapshot(where: Path) -> Iterator[None]:
    """Copy stabkit's checkout; jobs submitted within the block start there and import the copy."""
    root = checkout()
    if root is None:
        problem = "stabkit is installed as a package, whose code does not change: nothing to copy"
        raise ConfigError("--snapshot", [problem])
    before = Path.cwd()
    with ExitStack() as stack:
        stack.callback(os.chdir, before)
        try:
            stack.enter_context(RsyncSnapshot(where / f"code-{secrets.token_hex(4)}", root))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            problem = f"{error}; commit the deletion of a file that is missing in the checkout"
            raise ConfigError("--snapshot", [problem]) from None
        yield
