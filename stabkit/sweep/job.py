"""The work of a SLURM job: one training, and the requeue when it was preempted."""

import os
import signal
from dataclasses import replace
from pathlib import Path

from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment
from submitit.slurm.slurm import SlurmJobEnvironment

from stabkit.config import ConfigError, read_config
from stabkit.garbage import leave_garbage_at_exit, no_collections
from stabkit.rundir import ForeignFolderError, RunDir, Status
from stabkit.sweep.queue import is_running
from stabkit.train.stopping import PREEMPT_SIGNAL, stop_on_signals

IDLE_ATTEMPTS = 3  # attempts without a step, after which a run is not requeued again


class TrainJob:
    """A job, as submitit pickles it.

    It holds little, so that the pickle stays small and later versions can read it.
    """

    allow_inexact = False  # for a job that an older version submitted

    def __init__(self, folder: str, cwd: str, allow_inexact: bool = False) -> None:
        self.folder = folder
        self.cwd = cwd
        self.allow_inexact = allow_inexact

    def __call__(self) -> str:
        """Train, and return the state that the run ended in."""
        os.chdir(self.cwd)
        leave_garbage_at_exit()
        environment = SlurmJobEnvironment()
        requeue = signal.getsignal(PREEMPT_SIGNAL)  # submitit's
        rundir = RunDir(Path(self.folder))
        # Signals are caught from here on, so that a stop during the start is an attempt as well.
        with stop_on_signals() as stop:
            if environment.num_tasks > 1:
                _export_torch_environment()
            with no_collections():
                from stabkit.train.loop import train
                from stabkit.train.refusals import InexactResumeError

            try:
                config = read_config(rundir.config_file)
                status = train(config, rundir, stop, self.allow_inexact)
            except InexactResumeError as error:
                # Nobody reads a job's output, so the status says it.
                if last := rundir.last_status():
                    rundir.write_status(replace(last, reason=f"did not go on: {error}"))
                raise
            except (ConfigError, ForeignFolderError) as error:
                _tell_refused(rundir, environment.global_rank, error)
                raise
        if status.state != "preempted" or environment.global_rank != 0:
            return status.state
        if not callable(requeue) or not is_running(environment.job_id):
            # It was canceled, or SLURM requeued it: another requeue would revive or double it.
            return status.state
        if _makes_no_step(rundir, status):
            rundir.write_status(replace(status, state="failed", reason=_NO_STEP))
            return "failed"
        requeue(PREEMPT_SIGNAL, None)
        return status.state

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit runs after the requeue; the run itself has saved its state."""
        return DelayedSubmission(TrainJob(self.folder, self.cwd, self.allow_inexact))


_NO_STEP = (
    f"preempted {IDLE_ATTEMPTS} times without a single step between; raise slurm.timeout_min, or "
    "lower slurm.signal_delay_s"
)


def _tell_refused(rundir: RunDir, rank: int, error: Exception) -> None:
    """Write into the status why this node cannot run it, for example for want of a device.

    A run that has trained keeps its status.
    """
    status = rundir.last_status()
    if rank == 0 and status is not None and status.state == "waiting":
        rundir.write_status(replace(status, state="failed", reason=str(error)))


def _makes_no_step(rundir: RunDir, status: Status) -> bool:
    attempts = rundir.read_meta().get("attempts", [])[-IDLE_ATTEMPTS:]
    idle = [attempt for attempt in attempts if attempt.get("first_step") == status.step]
    return len(idle) == IDLE_ATTEMPTS


def _export_torch_environment() -> None:
    """Set torchrun's variables from SLURM's. An address from the job's setup lines is kept.

    CUDA_VISIBLE_DEVICES is left as it is: the training picks its device by LOCAL_RANK.
    """
    address = os.environ.get("MASTER_ADDR")
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if address:
        os.environ["MASTER_ADDR"] = address
