"""One run, from its configuration to its folder."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.config import RunConfig, run_id, save_config
from stabkit.monitor.monitor import Monitor
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.ranks import rank
from stabkit.monitor.signals.features import effective_rank, feature_std
from stabkit.rundir import RunBusyError, RunDir, Status, atomic_write, same_folder
from stabkit.store.gaps import gaps
from stabkit.store.reader import Run
from stabkit.train.compute import autocast, scaled_step, widened
from stabkit.train.data.batches import Batch, ReadAhead, make_batch
from stabkit.train.data.image_set import ImageSet
from stabkit.train.data.load import batch_index, load_data
from stabkit.train.device import device_name, prepare_device
from stabkit.train.exactness import check_resume, chosen_threads
from stabkit.train.heldout_knn import HeldoutKnn
from stabkit.train.meta import forget_other_job, record_attempt
from stabkit.train.optim.build import lr_at, momentum_at
from stabkit.train.optim.clipping import side_effects
from stabkit.train.parallel.agree import (
    REFUSALS,
    PeerError,
    PeerRefusedError,
    agreed,
    check_same_start,
    failing_together,
    first_alone,
    of_first,
)
from stabkit.train.parallel.reduce import (
    Agreement,
    gather,
    mean_of_processes,
    process_group,
)
from stabkit.train.probe import build_probe
from stabkit.train.progress import Progress, rows_missing
from stabkit.train.recording import Recorder, Silent, hold
from stabkit.train.request import as_request, check_free, check_request, claimed
from stabkit.train.state import State, build_state, load_state, save_state
from stabkit.train.stopping import Stop, stop_on_signals


def train(
    config: RunConfig, rundir: RunDir, stop: Stop | None = None, allow_inexact: bool = False
) -> Status:
    """Train to the end, from the last checkpoint if there is one, and return the final status.

    `preempted` when SIGTERM, SIGINT or the preemption signal came: the step was finished, all is
    saved and the same call goes on from there. Raises ConfigError, ForeignFolderError or
    RunBusyError when the request is wrong, the folder is not that of this run, or another process
    holds it; nothing has changed then. Any other error is also left in `status.json` as the reason
    of a failed run.

    Several processes, as torchrun starts them, each call this; together they are the run of one, up
    to rounding. The first writes the folder. An error of one ends the others with PeerError.

    Raises InexactResumeError, with nothing changed, when the run would go on with other threads, on
    another device or processor or with other versions than it was begun with, unless
    `allow_inexact` (or `runtime.allow_inexact`).

    `stop`: of a caller who catches the signals; else they are caught while steps are made.
    """
    cuda = device_name(config.runtime).startswith("cuda") and torch.cuda.is_available()
    with process_group(cuda):
        agreed(lambda: check_request(config, str(rundir.path)))
        status = of_first(lambda: claimed(config, rundir))
        if status and status.state == "done":
            return status
        of_first(lambda: check_free(rundir))
        threads = of_first(lambda: chosen_threads(config, rundir))
        runtime = config.runtime.model_copy(update={"threads": threads})
        config = config.model_copy(update={"runtime": runtime})
        allowed = allow_inexact or runtime.allow_inexact
        facts = of_first(lambda: check_resume(config, rundir, allowed))
        try:
            parts = _parts(config, str(rundir.path))
        except Exception as error:
            if rank() == 0 and not _is_refusal(error):
                with suppress(OSError, RunBusyError), rundir.lock():
                    _leave_reason(config, rundir, error)
            raise
        with hold(rundir):
            status = of_first(lambda: claimed(config, rundir))
            if status and status.state == "done":  # by another process meanwhile
                return status
            is_ours = same_folder(rundir.path)
            try:
                with failing_together():
                    return _train(config, rundir, parts, is_ours, stop, facts)
            except Exception as error:
                if _is_refusal(error):
                    raise
                if rank() != 0 and (isinstance(error, PeerError) or not cuda):
                    raise
                if not is_ours():
                    gone = f"{rundir.path}: the run's folder was deleted or moved while it trained"
                    raise FileNotFoundError(gone) from error
                with suppress(OSError):  # a full disk, say: what is told is what went wrong first
                    _leave_reason(config, rundir, error)
                raise


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, (*REFUSALS, PeerRefusedError))


def _leave_reason(config: RunConfig, rundir: RunDir, error: Exception) -> None:
    """The folder says which run failed, and why."""
    who = f"process {rank()}: " if rank() else ""  # with NCCL the first may not hear of it
    reason = f"{who}{type(error).__name__}: {error}"
    failed = rundir.last_status() or Status("failed", steps=config.train.steps)
    with suppress(OSError):  # a full disk takes no line more, but a status in place of the last
        if not rundir.config_file.exists():
            _write_config(config, rundir)
        rundir.append_event("failed", reason=reason)
    rundir.write_status(replace(failed, state="failed", reason=reason))


class Parts(NamedTuple):
    """What a training is made of before its folder is looked into."""

    device: torch.device
    images: ImageSet
    knn: HeldoutKnn
    state: State


def _parts(config: RunConfig, where: str) -> Parts:
    device = agreed(lambda: prepare_device(config.runtime, config.compute))
    load = first_alone if config.data.download else agreed
    images, heldout = load(lambda: load_data(config.data, config.seed, config.runtime.cache))
    n, classes = len(images), len(images.classes)
    agreed(lambda: as_request(lambda: batch_index(config.seed, 0, n, config.train.batch), where))
    knn = agreed(lambda: HeldoutKnn(images, heldout, config.knn, config.data.image_size, device))
    state = agreed(lambda: as_request(lambda: build_state(config, n, device, classes), where))
    return Parts(device, images, knn, state)


def _train(
    config: RunConfig,
    rundir: RunDir,
    parts: Parts,
    is_ours: Callable[[], bool],
    stop: Stop | None,
    facts: Mapping[str, Any],
) -> Status:
    device, images, knn, state = parts
    resumed = of_first(rundir.checkpoint_file.exists)
    # agreed: all have read the checkpoint before the first goes on to write the next
    first = agreed(lambda: load_state(state, config, rundir.checkpoint_file) if resumed else 0)
    check_same_start(state.model, first)
    of_first(lambda: _write_config(config, rundir))
    probe = agreed(lambda: build_probe(config, state.model, images, device))
    monitor = agreed(lambda: _recorder(config, rundir, state, first, device, probe))
    # after the monitor, which then records gradients as they were before anything is clipped
    state.stabilizer.attach(state.optimizer)
    state.reduction.overlap()
    if rank() == 0:
        rundir.append_event("resume" if resumed else "start", first, **facts)
    lacking = _lacking(rundir, first)
    if lacking:
        rundir.append_event("rows_missing", first, gaps=lacking)
    with monitor, nullcontext(stop) if stop else stop_on_signals() as stop:
        progress = Progress(config, rundir, first, 1 / knn.num_classes, is_ours, lacking)
        with ReadAhead(config, images) as ahead:
            status = _steps(config, rundir, state, monitor, ahead, knn, first, stop, progress)
    if rank() == 0:
        now = _lacking(rundir, status.step)
        if now != lacking:
            rundir.append_event("rows_missing", status.step, gaps=now)
        reasons = [reason for reason in (status.reason, rows_missing(now)) if reason]
        status = replace(status, reason="; ".join(reasons) or None)
        rundir.append_event(status.state, status.step, reason=status.reason)
        rundir.write_status(status)
    return status


def _write_config(config: RunConfig, rundir: RunDir) -> None:
    """First of all: whatever comes later, the folder says whose it is."""
    atomic_write(rundir.config_file, save_config(config).encode())


def _lacking(rundir: RunDir, step: int) -> list[str]:
    """Rows of the steps before `step` that are no longer there.

    The run goes on without them, for they could only be made again from its start; its log and its
    status say so.
    """
    return gaps(Run(rundir.path).keeping(), end=step) if rank() == 0 else []


def _recorder(
    config: RunConfig,
    rundir: RunDir,
    state: State,
    first: int,
    device: torch.device,
    probe: Probe | None,
) -> Recorder:
    if rank() != 0:
        return Silent()
    forget_other_job(rundir)
    record_attempt(rundir, first, device)
    return Monitor(
        state.model.online,
        state.optimizer,
        rundir.path,
        signals=("basic", *config.runtime.signals),
        probe=probe,
        scaler=state.scaler,
        probe_every=config.runtime.signals_every,
        first_step=first,
        flush_every=config.runtime.flush_every,
        samples_per_step=config.train.batch,
        strict=True,  # a checkpoint must not claim rows that are not on disk
        _run_id=run_id(config),
    )


def _steps(
    config: RunConfig,
    rundir: RunDir,
    state: State,
    monitor: Recorder,
    ahead: ReadAhead,
    knn: HeldoutKnn,
    first: int,
    stop: Stop,
    progress: "Progress",
) -> Status:
    steps, every = config.train.steps, config.runtime.checkpoint_every
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
    config: RunConfig, state: State, monitor: Recorder, batch: Batch, step: int, num_classes: int
) -> None:
    """One update: schedules, loss, backward, optimizer; then what is recorded of it."""
    steps = config.train.steps
    lr = lr_at(step, steps, config.optim, config.train.batch)
    momentum = momentum_at(step, steps, config.method)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    before = side_effects(state.model) if config.optim.skip_nonfinite else {}
    labels = batch.labels[batch.own]
    with autocast(config.compute, labels.device):
        loss, features, embeddings = state.model(batch.view1, batch.view2, labels, momentum, step)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.reduction.finish()
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
    if not state.stabilizer.skipped:
        state.bank.add(features, batch.labels, batch.ids)


def evaluate_heldout(
    config: RunConfig, state: State, monitor: Recorder, knn: HeldoutKnn, step: int
) -> NDArray[np.bool_] | None:
    predicted = knn.predict(state.model.online.backbone, config.compute)
    if predicted is None:
        return None
    monitor._log_knn(
        step, "knn_heldout", predicted, knn.labels, chance=1 / knn.num_classes, k=knn.k,
        temperature=knn.config.temperature,
    )  # fmt: skip
    correct: NDArray[np.bool_] = (predicted == knn.labels).cpu().numpy()
    return correct


def checkpoint(
    config: RunConfig, rundir: RunDir, state: State, monitor: Recorder, step: int
) -> None:
    """Rows first, then the state: a checkpoint never claims a step whose rows are not on disk."""
    monitor.flush()
    if rank() == 0:
        save_state(state, config, step, rundir.checkpoint_file)
