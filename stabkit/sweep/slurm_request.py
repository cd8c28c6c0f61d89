"""What a run asks of a SLURM cluster, and who asked for it: sweep file, user file, command line."""

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
]  # a single line: a line break would start a new command

OURS = {  # options that stabkit sets itself
    "array", "error", "job-name", "open-mode", "output",
}  # fmt: skip


class SlurmRequest(Section):
    """What one run asks for, by submitit's names; its documentation and sbatch's explain them.

    `additional_parameters` holds any other option of sbatch as `{name: value}`, `true` for an
    option without a value. `mem_gb` is the memory of a node, `setup` the shell lines before the
    run. `signal_delay_s` is how long before its time limit a run is told to save and requeue.
    `array_parallelism` is how many of the runs with equal requests run at a time.
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
    """Return the file with a user's own settings for their cluster: partition, account, …"""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    try:
        return Path(home).expanduser() / "stabkit" / "slurm.yaml"
    except RuntimeError as error:  # ~name, where there is no such user
        raise ConfigError(f"XDG_CONFIG_HOME = {home!r}", [str(error)]) from None


def read_defaults() -> dict[str, Any]:
    """Return the settings of the user's file, none if there is no file. Raises ConfigError."""
    path = defaults_file()
    if not path.exists():
        return {}
    content = read_mapping(path)
    validate(SlurmRequest, content, str(path))
    return content


def merged(
    sweep: Mapping[str, Any], defaults: Mapping[str, Any], command_line: Mapping[str, Any]
) -> tuple[SlurmRequest, dict[str, str]]:
    """Return the request of a run and, for every setting in it, who asked for it.

    The user's file wins over the sweep file, and the command line over both. Raises ConfigError.
    """
    sources = {"sweep file": sweep, str(defaults_file()): defaults, "command line": command_line}
    origin = {key: name for name, settings in sources.items() for key in settings}
    request = validate(SlurmRequest, {**sweep, **defaults, **command_line}, "slurm")
    if request.timeout_min is None:
        problem = "timeout_min: missing; SLURM's own default may be a few minutes"
        where = f"the sweep file's slurm section, {defaults_file()}, or slurm.timeout_min=MINUTES"
        raise ConfigError("slurm", [f"{problem}. Set it in {where}"])
    return request, origin
