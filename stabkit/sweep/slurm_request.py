"""What a run asks of a SLURM cluster, and which file or word asked for it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from stabkit.config import (
    ConfigError,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    read_mapping,
    validate,
)

Text = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")
]  # one line: a break starts a new command

OURS = {"array", "error", "job-name", "open-mode", "output"}


class SlurmRequest(Section):
    """What one run asks for, by submitit's names (its documentation, and sbatch's, explain them).

    `additional_parameters`: any other option of sbatch, `{name: value}`, `true` for a bare one.
    `mem_gb`: of a node. `setup`: lines of shell before the run. `signal_delay_s`: how long before a
    time limit a run is told to save and requeue. `array_parallelism`: how many of the runs that ask
    for the same run at a time.
    """

    nodes: PositiveInt = 1
    tasks_per_node: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    cpus_per_task: PositiveInt = 1
    mem_gb: PositiveFloat | None = None
    timeout_min: PositiveInt | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    wckey: Text | None = None
    array_parallelism: PositiveInt = 256
    signal_delay_s: PositiveInt = 90
    setup: list[str] = Field(default_factory=list)
    srun_args: list[Text] = Field(default_factory=list)
    additional_parameters: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], bool | int | float | Text
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_gpu_a_task(self) -> Self:
        if self.gpus_per_node and self.gpus_per_node != self.tasks_per_node:
            raise ValueError(
                f"gpus_per_node {self.gpus_per_node} and tasks_per_node {self.tasks_per_node} "
                "differ: a task drives one GPU"
            )
        return self

    @model_validator(mode="after")
    def _time_to_train(self) -> Self:
        if self.timeout_min is not None and self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s {self.signal_delay_s} is not below timeout_min {self.timeout_min} "
                "(in seconds): every run would be stopped as soon as it starts"
            )
        return self

    @model_validator(mode="after")
    def _ours_stay_ours(self) -> Self:
        ours = {key.replace("_", "-") for key in self.additional_parameters} & OURS
        if ours:
            raise ValueError(
                f"additional_parameters: {', '.join(sorted(ours))} is set by stabkit, which finds "
                "its jobs and logs by it"
            )
        return self


def defaults_file() -> Path:
    """Where a user keeps what holds for their cluster: partition, account, setup lines, …"""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    try:
        return Path(home).expanduser() / "stabkit" / "slurm.yaml"
    except RuntimeError as error:  # ~name of nobody
        raise ConfigError(f"XDG_CONFIG_HOME = {home!r}", [str(error)]) from None


def read_defaults() -> dict[str, Any]:
    """The user's file; nothing when there is none. Raises ConfigError."""
    path = defaults_file()
    if not path.exists():
        return {}
    content = read_mapping(path)
    validate(SlurmRequest, content, str(path))
    return content


def merged(
    sweep: Mapping[str, Any], defaults: Mapping[str, Any], words: Mapping[str, Any]
) -> tuple[SlurmRequest, dict[str, str]]:
    """The request of a cell and, for every setting in it, who asked.

    A later one wins: the sweep file, the user's file, the command line. Raises ConfigError.
    """
    sources = {"sweep file": sweep, str(defaults_file()): defaults, "command line": words}
    origin = {key: name for name, settings in sources.items() for key in settings}
    request = validate(SlurmRequest, {**sweep, **defaults, **words}, "slurm")
    if request.timeout_min is None:
        problem = "timeout_min: missing; SLURM would give a run its own few minutes"
        where = f"the sweep file's slurm section, {defaults_file()}, or slurm.timeout_min=MINUTES"
        raise ConfigError("slurm", [f"{problem}. Say it in {where}"])
    return request, origin
