"""Turn requests into job arrays and the sbatch text that submitit writes for them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from stabkit.config import ConfigError
from stabkit.sweep.slurm_request import SlurmRequest

# Practically no limit: a run ends by its number of steps, and TrainJob notices when it makes none.
TIMEOUTS = 1_000_000
PASSED_ON = (
    *("nodes", "cpus_per_task", "partition", "account", "qos", "constraint", "wckey"),
    *("signal_delay_s", "setup"),
)


class Executor(SlurmExecutor):
    """Submitit's executor, which can also show its text where SLURM is not installed."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def make_executor(folder: Path, request: SlurmRequest, name: str, parallel: int) -> Executor:
    """Return an executor for `folder` that runs at most `parallel` jobs of an array at a time."""
    executor = Executor(folder, max_num_timeout=TIMEOUTS)
    executor.update_parameters(**_parameters(request, name), array_parallelism=parallel)
    return executor


def sbatch_text(executor: Executor, jobs: int) -> str:
    """Return the script for `jobs` jobs, an array if more than one, as it would be submitted."""
    if jobs > 1:
        executor.parameters["map_count"] = jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _parameters(request: SlurmRequest, name: str) -> dict[str, Any]:
    parameters = {key: value for key in PASSED_ON if (value := getattr(request, key)) is not None}
    # --kill-on-bad-exit: otherwise the other tasks would wait for a lost one until the time limit.
    # --cpus-per-task: since SLURM 22.05 srun does not take it over from sbatch.
    srun = ["--kill-on-bad-exit=1", f"--cpus-per-task={request.cpus_per_task}"]
    parameters["srun_args"] = [*srun, *request.srun_args]
    extra = request.additional_parameters
    parameters["additional_parameters"] = {"requeue": True} | extra
    if {"no-requeue", "no_requeue"} & extra.keys():
        del parameters["additional_parameters"]["requeue"]
    if request.mem_gb is not None:
        parameters["mem"] = f"{math.ceil(request.mem_gb * 1024)}M"
    if request.gpus_per_node:
        parameters["gpus_per_node"] = request.gpus_per_node
    return parameters | {
        "job_name": name,
        "time": request.timeout_min,
        "ntasks_per_node": request.tasks_per_node,
        "stderr_to_stdout": True,
        "wckey": request.wckey,  # None: sites that check wckeys refuse submitit's own default
    }


def chunks(count: int, array_size: int) -> list[int]:
    """Split `count` jobs into as few arrays as the site allows, of even size."""
    arrays = -(-count // array_size)
    return [count // arrays + (i < count % arrays) for i in range(arrays)]


def shares(parallel: int, sizes: Sequence[int]) -> list[int]:
    """Divide `parallel` running jobs among arrays, since SLURM limits each array by itself."""
    count = len(sizes)
    return [max(1, parallel // count + (i < parallel % count)) for i in range(count)]


def check_path(folder: Path) -> None:
    """Raise ConfigError for a path with characters that SLURM replaces."""
    bad = sorted({c for c in str(folder) if c in "%\\" or not c.isprintable()})
    if bad:
        shown = ", ".join(map(repr, bad))
        problem = f"the path of the runs holds {shown}, which SLURM replaces in the names of logs"
        raise ConfigError(str(folder), [f"{problem}; use --runs to put them elsewhere"])
