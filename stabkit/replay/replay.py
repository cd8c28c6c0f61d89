"""Make steps of a run again, with dense instruments, and prove that they are the run's own."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from stabkit.config import run_id
from stabkit.monitor.monitor import Monitor
from stabkit.monitor.ranks import rank
from stabkit.replay.instruments import SampleLosses, SampleTable, TensorNorms
from stabkit.replay.plan import ReplayPlan, make_plan
from stabkit.replay.proof import Proof, ReplayDiffersError
from stabkit.rundir import ForeignFolderError, atomic_write
from stabkit.store.reader import StoredRun
from stabkit.train.data.batches import ReadAhead, make_batch
from stabkit.train.exactness import changes, circumstances, in_words, likely_cause
from stabkit.train.loop import TrainingParts, evaluate_heldout, prepare, train_step
from stabkit.train.optim.freeze import freeze_parameters
from stabkit.train.parallel.agree import (
    check_same_start,
    fail_together,
    run_by_first,
    run_together,
)
from stabkit.train.parallel.reduce import average_gradients, process_group
from stabkit.train.probe import build_probe
from stabkit.train.recording import Recorder, Silent
from stabkit.train.request import check_request
from stabkit.train.state import load_state, whole_state

SIGNALS = ("attention", "features")  # beside `basic` and those of the run; curvature costs too much
INTERVAL = 50  # steps after which the replay is compared with the record


class Replay(NamedTuple):
    """A replay that is the run's own; its tables are files in `folder`."""

    plan: ReplayPlan
    folder: Path
    rows: int  # steps whose rows are equal
    evaluations: int
    states: list[int]  # steps before which the whole state is equal
    changed: str  # circumstances that differ and, as it turned out, do not matter


def replay(
    folder: Path, at: str, out: Path, until: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Replay | None:  # fmt: skip
    """Replay the steps around `at`, a step or an event, and write what was measured into `out`.

    The run's folder is only read. Several processes, as torchrun starts them, each call this; all
    but the first return None. `say` is called with what is known before the first step.

    Raises ReplayDiffersError, in the first process, when the replay is not the run; ConfigError or
    ForeignFolderError when the request is wrong.
    """
    with process_group(torch.cuda.is_available()):
        plan = run_by_first(lambda: make_plan(folder, at, until))
        run_together(lambda: check_request(plan.config, str(folder)))
        run_by_first(lambda: _claim(out))
        parts = run_together(lambda: prepare(plan.config, str(folder)))
        if rank() == 0:
            say(_introduction(plan))
        with fail_together():
            return _replay(plan, folder, out, parts)


def _replay(plan: ReplayPlan, folder: Path, out: Path, parts: TrainingParts) -> Replay | None:
    config, device = plan.config, parts.device
    state = parts.state
    if plan.file is not None:
        file = plan.file
        run_together(lambda: load_state(state, config, file))
    check_same_start(state.model, plan.start)
    losses = SampleLosses(average_gradients(state.model))
    # compiled code could not be watched from outside without being compiled anew
    state = replace(state, network=losses.network if config.compute.compile else losses)
    monitor = run_together(lambda: _monitor(plan, folder, out, parts))
    norms, samples = TensorNorms(state.model.online), SampleTable()
    norms.attach(state.optimizer)
    state.stabilizer.attach(state.optimizer)
    if config.branch:
        freeze_parameters(state.model.online, state.optimizer, config.branch.freeze)
    proof = Proof(StoredRun(folder).as_of_now().keeping(), out)
    changed = changes(plan.attempt, circumstances(device, torch.get_num_threads()))
    with _told(plan, in_words(changed)), monitor, ReadAhead(config, parts.images) as ahead:
        compared = plan.start
        for step in range(plan.start, plan.end + 1):
            ends = step == plan.end
            if step - compared >= INTERVAL or step in plan.states:
                monitor.flush()
                run_by_first(lambda a=compared, b=step: proof.compare(a, b))  # type: ignore[misc]
                compared = step
            if step in plan.states:
                content, path = whole_state(state), plan.states[step]
                run_by_first(
                    lambda s=step, p=path, c=content: _compare_state(proof, norms, s, p, c)  # type: ignore[misc]
                )
            is_due = step % config.knn.every == 0 or step == config.end
            if is_due and evaluate_heldout(config, state, monitor, parts.knn, step) is None:
                break  # the run ended here: its features were no longer finite
            if ends:
                break
            batch = make_batch(config, ahead.take(step), device)
            norms.step = step
            train_step(config, state, monitor, batch, step, parts.knn.num_classes)
            samples.add(step, batch.ids, losses.losses)
        monitor.flush()
        run_by_first(lambda: proof.compare(compared, step))
        run_by_first(lambda: proof.compare_last(step))
    if rank() != 0:
        return None
    _write(norms.table(), out / "tensors.parquet")
    _write(samples.table(), out / "samples.parquet")
    done = Replay(
        plan, out, proof.rows, proof.evaluations, sorted(proof.states), in_words(changed)
    )  # fmt: skip
    atomic_write(out / "replay.json", json.dumps(_facts(done, folder), indent=1).encode())
    return done


def _monitor(plan: ReplayPlan, folder: Path, out: Path, parts: TrainingParts) -> Recorder:
    if rank() != 0:
        return Silent()
    config, state = plan.config, parts.state
    levels = tuple(dict.fromkeys([*SIGNALS, *config.runtime.signals]))
    runtime = config.runtime.model_copy(update={"signals": levels})
    dense = config.model_copy(update={"runtime": runtime})
    return Monitor(
        state.model.online,
        state.optimizer,
        out,
        signals=("basic", *levels),
        probe=build_probe(dense, state.model, parts.images, parts.device),
        scaler=state.scaler,
        probe_every=1,
        first_step=plan.start,
        flush_every=INTERVAL,
        full_every=1,
        strict=True,
        config={"replay_of": str(folder), "run": run_id(config), "what": plan.words},
    )


def _compare_state(
    proof: Proof, norms: TensorNorms, step: int, file: Path, content: dict[str, object]
) -> None:
    """Compare a state; the optimizer's tensors are told by the name of their parameter."""
    try:
        proof.compare_state(step, file, content)
    except ReplayDiffersError as error:
        before, number, after = str(error).partition("optimizer.state.")
        index, _, kind = after.partition(".")
        if number and index.isdecimal() and int(index) < len(norms.names):
            raise ReplayDiffersError(f"{before}{kind} of {norms.names[int(index)]}") from None
        raise


@contextmanager
def _told(plan: ReplayPlan, changed: str) -> Iterator[None]:
    """Add to a difference what may have caused it."""
    try:
        yield
    except ReplayDiffersError as error:
        causes = [changed] if changed else []
        for before, after in zip([plan.attempt, *plan.later], plan.later, strict=False):
            if found := in_words(changes(before, after)):
                causes.append(f"at step {after.get('first_step')} of the run {found}")
        raise ReplayDiffersError(f"{error}. {likely_cause('; '.join(causes))}") from None


def _introduction(plan: ReplayPlan) -> str:
    begin = f"the state {plan.file.name}" if plan.file is not None else "the start of the run"
    damaged = "".join(f"; passed over: {problem}" for problem in plan.damaged)
    return f"replay of {plan.words}: steps {plan.start} to {plan.end} from {begin}{damaged}"


def _claim(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ForeignFolderError(f"{out}: holds something already; name another folder with -o")


def _write(table: pd.DataFrame, file: Path) -> None:
    atomic_write(file, table.to_parquet(index=False))


def _facts(done: Replay, folder: Path) -> dict[str, object]:
    plan = done.plan
    return {
        "run": run_id(plan.config),
        "folder": str(folder),
        "what": plan.words,
        "onset": plan.onset,
        "steps": [plan.start, plan.end],
        "from": plan.file.name if plan.file is not None else None,
        "equal": {"rows": done.rows, "evaluations": done.evaluations, "states": done.states},
        "changed": done.changed or None,
    }
