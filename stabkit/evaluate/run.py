"""Evaluations of a run's last checkpoint: measured, told, kept in the run's `evals` table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from stabkit.config import ComputeConfig, ConfigError, RunConfig, run_id
from stabkit.evaluate.config import METRICS, EvaluateConfig, Method, metric_name
from stabkit.evaluate.features import encode_set
from stabkit.evaluate.finetune import finetune
from stabkit.evaluate.linear_probe import linear_probe, table
from stabkit.rundir import RunBusyError, RunDir
from stabkit.store.parts import write_part
from stabkit.store.writer import Writer, read_part
from stabkit.train.data.load import ImageSet, load_data
from stabkit.train.device import check_device, prepare_device
from stabkit.train.knn import knn_predict_each
from stabkit.train.request import check_free
from stabkit.train.weights import load_backbone


@dataclass(frozen=True)
class Result:
    """Predicted classes of every held-out image; `k` and `temperature` are 0 where there is none"""

    predicted: Tensor
    k: int = 0
    temperature: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """What every method is given."""

    backbone: nn.Module
    train: ImageSet
    heldout: ImageSet
    config: EvaluateConfig
    device: torch.device
    say: Callable[[str], None]

    @cached_property
    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the frozen backbone: training features and labels, held-out features and labels."""
        size = self.config.data.image_size
        return (
            *encode_set(self.backbone, self.train, size, self.device),
            *encode_set(self.backbone, self.heldout, size, self.device),
        )


def evaluate_run(
    rundir: RunDir,
    run: RunConfig,
    config: EvaluateConfig,
    methods: Sequence[Method],
    say: Callable[[str], None] = print,
) -> None:
    """Evaluate by each method; an earlier result of the same step and metric is replaced.

    Holds the run for as long as it takes. What is refused leaves no trace: ConfigError when the
    device is not there, ForeignFolderError when the checkpoint is of another configuration,
    RunBusyError when another process holds the run. Raises ValueError when the weights do not fit
    or their features are not finite.
    """
    check_free(rundir)
    try:
        check_device(config.runtime)
        device = prepare_device(config.runtime, ComputeConfig())
    except ValueError as error:
        raise ConfigError(str(rundir.path), [str(error)]) from None
    read_at = rundir.checkpoint_file.stat().st_mtime_ns
    backbone, step = load_backbone(rundir, device)
    with rundir.lock():
        if rundir.checkpoint_file.stat().st_mtime_ns != read_at:
            raise RunBusyError(f"{rundir.path}: another process has just trained it; try again")
        for part in _parts(rundir):
            read_part(part)  # a damaged one is refused before hours of work, and kept as it is
        status = rundir.read_status()
        if status is not None and status.reason:
            say(f"of this run: {status.reason}")
        if status is not None and status.state != "done":
            say(f"this run is not done: going on with it drops its evaluations at step {step}")
        inputs = Inputs(
            backbone,
            *load_data(config.data, config.seed, config.runtime.cache),
            config,
            device,
            say,
        )
        for method, measure in MEASURE.items():
            if method in methods:
                metric = metric_name(METRICS[method], run.data, config.data)
                settings = getattr(config, method).model_dump(mode="json")
                _record(rundir, run, inputs, step, metric, measure(inputs), settings)


def _record(
    rundir: RunDir,
    run: RunConfig,
    inputs: Inputs,
    step: int,
    metric: str,
    results: list[Result],
    settings: dict[str, Any],
) -> None:
    """Say each result, keep its bits in the table and how it was measured in the event log."""
    writer = Writer(rundir.path, run_id(run))
    labels = torch.from_numpy(inputs.heldout.labels)
    chance = 1 / len(inputs.train.classes)
    data = inputs.config.data.model_dump(mode="json")
    found = []
    for result in results:
        correct = (result.predicted.cpu() == labels).numpy()
        value = float(correct.mean())
        writer.add_eval(step, metric, value, chance, result.k, result.temperature, correct)
        neighbours = f", k {result.k}" if result.k else ""
        inputs.say(f"{metric}{neighbours}: {value:.4f} of {len(correct)} held-out images")
        found.append({"metric": metric, "value": value, **result.facts})
    replace_rows(rundir, writer, step, metric)
    for facts in found:  # after the rows, so that no event tells of what is not there
        rundir.append_event("evaluated", step, **facts, settings=settings, data=data)


def replace_rows(rundir: RunDir, writer: Writer, step: int, metric: str) -> None:
    """Flush the writer, then remove what older parts hold of the step and metric."""
    older = _parts(rundir)
    writer.flush()
    for part in older:
        rows = read_part(part)
        same = pc.and_(
            pc.equal(rows["step"], step), pc.equal(rows["metric"].cast(pa.string()), metric)
        )
        kept = rows.filter(pc.invert(same))
        if not kept.num_rows:
            part.unlink()
        elif kept.num_rows < rows.num_rows:
            write_part(part, kept, rows.schema)


def _parts(rundir: RunDir) -> list[Path]:
    return sorted(rundir.table("evals").glob("part-*.parquet"))


def _knn(inputs: Inputs) -> list[Result]:
    bank, labels, queries, _ = inputs.features
    knn, classes = inputs.config.knn, len(inputs.train.classes)
    found = knn_predict_each(queries, bank, labels, classes, knn.k, knn.temperature)
    return [Result(found[k], k, knn.temperature, {"k": k, "bank": len(bank)}) for k in found]


def _linear(inputs: Inputs) -> list[Result]:
    linear, classes, say = inputs.config.linear, len(inputs.train.classes), inputs.say
    probe = linear_probe(*inputs.features, classes, linear, inputs.config.seed)
    say("linear probe on cached features: augmentation is off, features are standardised;")
    say(f"the rate is chosen on {linear.choose_on:.0%} of the training images, then all are used")
    for line in table(probe):
        say(line)
    if len(linear.lr) > 1 and probe.best in (0, len(linear.lr) - 1):
        say("the chosen rate is an end of linear.lr: a wider range may do better")
    facts = {"lr": probe.lrs[probe.best], "choosing": probe.choosing, "heldout": probe.heldout}
    return [Result(probe.predicted, facts=facts)]


def _finetune(inputs: Inputs) -> list[Result]:
    config, device = inputs.config, inputs.device
    size, epochs = config.data.image_size, config.finetune.epochs

    def report(epoch: int, loss: float) -> None:
        inputs.say(f"fine-tuning: epoch {epoch + 1} of {epochs}, loss {loss:.3f}")

    model = finetune(
        inputs.backbone, inputs.train, size, config.finetune, config.seed, device, report
    )
    logits, _ = encode_set(model, inputs.heldout, size, device)
    return [Result(logits.argmax(dim=1))]


MEASURE: dict[Method, Callable[[Inputs], list[Result]]] = {
    "knn": _knn,
    "linear": _linear,
    "finetune": _finetune,  # last, since it moves the weights
}
