"""One run, from its configuration to its folder."""

from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.config import RunConfig, run_id
from stabkit.config.branch import lr_share
from stabkit.config.schedule import lr_at, momentum_at
from stabkit.monitor.monitor import Monitor
from stabkit.monitor.probe.attention_logits import widened
from stabkit.monitor.ranks import rank
from stabkit.monitor.signals.features import effective_rank, feature_std
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import METRIC
from stabkit.train.compute import autocast, scaled_step
from stabkit.train.data.batches import Batch, ReadAhead, make_batch
from stabkit.train.data.image_set import ImageSet
from stabkit.train.data.load import batch_index, load_data
from stabkit.train.device import device_name, prepare_device
from stabkit.train.held_run import HeldRun, hold_for_all, record_failure, write_config
from stabkit.train.heldout_knn import HeldoutKnn
from stabkit.train.keeping import save_and_keep
from stabkit.train.meta import forget_other_job, record_attempt
from stabkit.train.optim.clipping import side_effects
from stabkit.train.optim.fault import hold_back
from stabkit.train.optim.freeze import freeze_parameters
from stabkit.train.parallel.agree import (
    check_same_start,
    fail_together,
    run_by_first,
    run_first_then_others,
    run_together,
)
from stabkit.train.parallel.reduce import (
    Agreement,
    average_gradients,
    gather,
    mean_of_processes,
    process_group,
)
from stabkit.train.probe import build_probe
from stabkit.train.progress import Progress
from stabkit.train.recording import Recorder, Silent
from stabkit.train.request import (
    Start,
    as_data,
    as_request,
    check_request,
    config_with_threads,
    is_done,
    look_into,
)
from stabkit.train.state import TrainState, build_state, load_state, save_state
from stabkit.train.stopping import Stop, stop_on_signals
from stabkit.train.weights_bits import weights_bits


def train(
    config: RunConfig, rundir: RunDir, stop: Stop | None = None, allow_inexact: bool = False
) -> Status:
    """Train to the end, from the last checkpoint if there is one, and return the final status.

    The state is `preempted` when SIGTERM, SIGINT or the preemption signal came: the current step
    was finished, everything is saved, and the same call goes on from there.

    Raises ConfigError when the settings or the data are wrong, ForeignFolderError when the folder
    is not that of this run, RunBusyError when another process holds it, and InexactResumeError when
    the run would go on with other threads, on another device or processor or with other versions
    than it was begun with, unless `allow_inexact` (or `runtime.allow_inexact`). Nothing has changed
    then. Any other error is also left in `status.json` as the reason of a failed run.

    Several processes, as torchrun starts them, each call this; together they are the run of one, up
    to rounding. The first writes the folder. An error of one ends the others with PeerError.

    `stop`: the caller catches the signals; without it they are caught here while steps are made.
    """
    cuda = device_name(config.runtime).startswith("cuda") and torch.cuda.is_available()
    allowed = allow_inexact or config.runtime.allow_inexact
    with process_group(cuda):
        run_together(lambda: check_request(config, str(rundir.path)))
        start = run_by_first(lambda: look_into(config, rundir, allowed))
        if start.status and is_done(start.status):
            return start.status
        config = config_with_threads(config, start.threads)
        with record_failure(config, rundir):
            prepare_all = run_first_then_others if config.data.download else run_together
            parts = prepare_all(lambda: prepare(config, str(rundir.path)))
        with (
            hold_for_all(config, rundir) as held,
            record_failure(config, rundir, held, nccl=cuda),
            fail_together(),
        ):
            if held.status and is_done(held.status):  # another process finished it meanwhile
                return held.status
            return _run(config, parts, held, start, stop)


class TrainingParts(NamedTuple):
    """What a training is made of, apart from its folder."""

    device: torch.device
    images: ImageSet
    knn: HeldoutKnn
    state: TrainState


def prepare(config: RunConfig, where: str) -> TrainingParts:
    """Read the data and build the state; raise ConfigError where data or settings are wrong."""
    device = prepare_device(config.runtime, config.compute)
    images, heldout = as_data(lambda: load_data(config.data, config.runtime.cache), where)
    n, classes = len(images), len(images.classes)
    # whether a batch fits the data set
    as_request(lambda: batch_index(config.seed, 0, n, config.train.batch), where)
    size = config.data.image_size
    knn = as_data(lambda: HeldoutKnn(images, heldout, config.knn, size, device), where)
    state = as_request(lambda: build_state(config, n, device, classes), where)
    return TrainingParts(device, images, knn, state)


def _run(
    config: RunConfig, parts: TrainingParts, held: HeldRun, start: Start, stop: Stop | None
) -> Status:
    """Make the steps that are left, record them, and close the folder with the final status."""
    state, file = parts.state, held.rundir.checkpoint_file
    # together, so that all have read the checkpoint before the first process writes the next
    first = run_together(lambda: load_state(state, config, file) if held.resumed else 0)
    check_same_start(state.model, first)
    state = replace(state, network=average_gradients(state.model))
    monitor = run_together(lambda: _begin_record(config, parts, held, start, first))
    # after the Monitor, which then records gradients as they were before anything is clipped
    state.stabilizer.attach(state.optimizer)
    if config.branch:
        freeze_parameters(state.model.online, state.optimizer, config.branch.freeze)
    with monitor, nullcontext(stop) if stop else stop_on_signals() as stop:
        progress = Progress(config, held, first, 1 / parts.knn.num_classes)
        with ReadAhead(config, parts.images) as ahead:
            status = _steps(
                config, state, parts.knn, held.rundir, monitor, ahead, first, stop, progress
            )
    return progress.close(status)


def _begin_record(
    config: RunConfig, parts: TrainingParts, held: HeldRun, start: Start, first: int
) -> Recorder:
    """Write the configuration and the attempt; return the Monitor. Only the first process records.

    The others get a recorder that does nothing.
    """
    if rank() != 0:
        return Silent()
    state, rundir = parts.state, held.rundir
    write_config(config, rundir)
    forget_other_job(rundir)
    record_attempt(rundir, first, parts.device)
    monitor = Monitor(
        state.model.online,
        state.optimizer,
        rundir.path,
        signals=("basic", *config.runtime.signals),
        probe=build_probe(config, state.model, parts.images, parts.device),
        scaler=state.scaler,
        probe_every=config.runtime.signals_every,
        first_step=first,
        flush_every=config.runtime.flush_every,
        full_every=1,
        samples_per_step=config.train.batch,
        strict=True,  # a checkpoint must not claim rows that are not on disk
        _run_id=run_id(config),
    )
    rundir.append_entry("resume" if held.resumed else "start", first, **start.facts)
    return monitor


def _steps(
    config: RunConfig,
    state: TrainState,
    knn: HeldoutKnn,
    rundir: RunDir,
    monitor: Recorder,
    ahead: ReadAhead,
    first: int,
    stop: Stop,
    progress: Progress,
) -> Status:
    """Checkpoint, evaluate, update, in this order, until the last step or a stop."""
    steps, every = config.end, config.runtime.checkpoint_every
    agreement = Agreement()
    for step in range(first, steps + 1):
        stopped = agreement.ask(stop.signal is not None)
        if step > first and (step % every == 0 or stopped):
            checkpoint(config, rundir, state, monitor, step)
        if stopped and step < steps:
            name = stop.signal.name if stop.signal else "a signal to another of its processes"
            return progress.status("preempted", step, f"stopped by {name}")
        if step % config.knn.every == 0 or step == steps:
            correct = evaluate_heldout(config, state, monitor, knn, step)
            if correct is None:
                return progress.status("done", step, "diverged: the features are no longer finite")
            progress.evaluated(step, correct)
        if step == steps:
            break
        batch = make_batch(config, ahead.take(step), knn.bank.device)
        train_step(config, state, monitor, batch, step, knn.num_classes)
        progress.report(step + 1)
    checkpoint(config, rundir, state, monitor, steps)
    return progress.status("done", steps, None)


def train_step(
    config: RunConfig,
    state: TrainState,
    monitor: Recorder,
    batch: Batch,
    step: int,
    num_classes: int,
) -> None:
    """Make one update: schedules, loss, backward, optimizer; then record it."""
    steps = config.train.steps
    lr = lr_at(step, steps, config.optim, config.train.batch) * lr_share(config.branch, step)
    momentum = momentum_at(step, steps, config.method)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    before = side_effects(state.model) if config.optim.skip_nonfinite else {}
    labels = batch.labels[batch.own]
    with autocast(config.compute, labels.device):
        loss, features, embeddings = state.network(batch.view1, batch.view2, labels, momentum, step)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    hold_back(state.model.online, config.fault, step)
    if scaled_step(state.scaler, state.optimizer, config.optim.skip_nonfinite):
        state.stabilizer.skipped = True
    if config.optim.skip_nonfinite:
        monitor.log(skipped=float(state.stabilizer.skipped))
    if state.stabilizer.skipped:
        state.model.load_state_dict(before, strict=False)

    loss, features = mean_of_processes(loss), gather(widened(features))
    relative = state.model.loss_scalars(loss.detach(), config.train.batch)
    monitor.log(loss=loss, **relative, lr=lr)
    if hasattr(state.model, "target"):
        monitor.log(momentum=momentum)
    if step % config.knn.every == 0:
        monitor.log(feature_std=feature_std(features), effective_rank=effective_rank(features))
        monitor.log(embedding_std=feature_std(gather(widened(embeddings))))
    if step % config.knn.every == 0 and len(state.bank):
        k, temperature = min(config.knn.k, len(state.bank)), config.knn.temperature
        predicted = state.bank.predict(features, batch.ids, num_classes, k, temperature)
        monitor._log_knn(
            step, "knn_bank", predicted, batch.labels, chance=1 / num_classes, k=k,
            temperature=temperature,
        )  # fmt: skip
    if config.runtime.keep_states or config.branch:  # runs that are made again, or were
        monitor.log(weights_bits=weights_bits(state.model.online.parameters()))
    if not state.stabilizer.skipped:
        state.bank.add(features, batch.labels, batch.ids)


def evaluate_heldout(
    config: RunConfig, state: TrainState, monitor: Recorder, knn: HeldoutKnn, step: int
) -> NDArray[np.bool_] | None:
    """Evaluate and record held-out kNN after `step` updates.

    Returns for each query whether it was correct; None when the features are no longer finite.
    """
    predicted = knn.predict(state.model.online.backbone, config.compute)
    if predicted is None:
        return None
    monitor._log_knn(
        step, METRIC, predicted, knn.labels, chance=1 / knn.num_classes, k=knn.k,
        temperature=knn.config.temperature,
    )  # fmt: skip
    correct: NDArray[np.bool_] = (predicted == knn.labels).cpu().numpy()
    return correct


def checkpoint(
    config: RunConfig, rundir: RunDir, state: TrainState, monitor: Recorder, step: int
) -> None:
    """Write the rows, then the state: a checkpoint claims no step whose rows are not on disk.

    Keep the state as well, where `runtime.keep_states` asks for it.
    """

    def save() -> None:
        monitor.flush()
        save_state(state, config, step, rundir.checkpoint_file)

    if rank() == 0:
        save_and_keep(config, rundir, step, save)
