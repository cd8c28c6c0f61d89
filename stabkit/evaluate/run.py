"""Evaluate the last checkpoint of a run: measure, print, and keep in the run's `evals` table."""

from collections.abc import Callable, Sequence

import torch

from stabkit.config import ComputeConfig, ConfigError, RunConfig
from stabkit.evaluate.config import METRICS, EvaluateConfig, Method, metric_name
from stabkit.evaluate.measure import MEASURE, Inputs
from stabkit.evaluate.record import check_parts, record
from stabkit.rundir import RunBusyError, RunDir
from stabkit.train.data.errors import DataError
from stabkit.train.data.load import load_data
from stabkit.train.device import check_device, prepare_device
from stabkit.train.request import as_request, check_free
from stabkit.train.weights import load_backbone


def evaluate_run(
    rundir: RunDir,
    run: RunConfig,
    config: EvaluateConfig,
    methods: Sequence[Method],
    say: Callable[[str], None] = print,
) -> None:
    """Evaluate by each method; replace an earlier result of the same step and metric.

    The run is locked for as long as this takes. A refusal leaves no trace: ConfigError when the
    device is not there or the data cannot be used, ForeignFolderError when the checkpoint belongs
    to another configuration, RunBusyError when another process holds the run. Raises ValueError
    when the weights do not fit or their features are not finite, and DataError when an image that
    is decoded on every load is damaged.
    """
    check_free(rundir)
    device = as_request(lambda: _device(config), str(rundir.path))
    read_at = rundir.checkpoint_file.stat().st_mtime_ns
    backbone, step = load_backbone(rundir, device)
    with rundir.lock():
        if rundir.checkpoint_file.stat().st_mtime_ns != read_at:
            raise RunBusyError(f"{rundir.path}: another process has just trained it; try again")
        check_parts(rundir)
        _say_notes(rundir, step, say)
        try:
            data = load_data(config.data, config.runtime.cache)
        except DataError as error:
            raise ConfigError(str(rundir.path), [str(error)]) from error
        inputs = Inputs(backbone, *data, config, device, say)
        for method, measure in MEASURE.items():
            if method in methods:
                metric = metric_name(METRICS[method], run.data, config.data)
                settings = getattr(config, method).model_dump(mode="json")
                record(rundir, run, inputs, step, metric, measure(inputs), settings)


def _device(config: EvaluateConfig) -> torch.device:
    check_device(config.runtime)
    return prepare_device(config.runtime, ComputeConfig())


def _say_notes(rundir: RunDir, step: int, say: Callable[[str], None]) -> None:
    """Print what a reader of the results should know of the run."""
    status = rundir.read_status()
    if status is not None and status.reason:
        say(f"note: {status.reason}")
    if status is not None and status.state != "done":
        say(f"note: this run is not done; resuming it drops its evaluations at step {step}")
