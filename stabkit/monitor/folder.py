"""The folder a Monitor writes to: who holds it, and what it holds already."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, Protocol

from stabkit.monitor.measure.evals import LAST_STEP
from stabkit.rundir import RunDir, claim_for_monitor
from stabkit.store.background import Background
from stabkit.store.reader import StoredRun
from stabkit.store.writer import Writer, steps_in, trim


class Holder(Protocol):
    """Who holds a folder: the part of a Monitor that this module needs."""

    @property
    def step(self) -> int: ...

    def close(self) -> None: ...


_OPEN: "weakref.WeakValueDictionary[str, Holder]" = weakref.WeakValueDictionary()


class OpenedFolder(NamedTuple):
    """A folder that this process holds, and what the steps before `step` leave to those after.

    `out` is None in every process but the first, which alone writes. `evaluated`: metric and k of
    the evaluations at `step`, which were made before the checkpoint.
    """

    step: int
    in_nonfinite: bool = False
    beta2: float | None = None
    out: Background | None = None
    evaluated: frozenset[tuple[str, int]] = frozenset()


def checked_first_step(first_step: Any) -> int | None:
    """Return `first_step` as an int; None stays None. Raises ValueError for what is no step."""
    if first_step is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        step = -1 if isinstance(first_step, bool) else int(first_step)  # True is no step 1
        if step == first_step and 0 <= step <= LAST_STEP:
            return step
    raise ValueError(
        "Monitor: first_step must be the number of optimizer steps that the checkpoint has seen, a "
        f"whole number from 0 on, got {first_step!r}"
    )


def open_folder(
    rundir: RunDir, holder: Holder, first_step: int | None, run_id: str | None, strict: bool
) -> OpenedFolder:
    """Claim the folder for `holder`, remove rows at or after `first_step`, and start the writer.

    `run_id`: of a run of stabkit's own loop, which holds the folder already. Raises what
    `claim_folder` and `trim_folder` raise, and ForeignFolderError for a folder that is not a
    Monitor's; nothing is held then.
    """
    with ExitStack() as stack:
        if run_id is None:
            claim_for_monitor(rundir)
            stack.enter_context(claim_folder(rundir, holder, first_step))
        step = trim_folder(rundir, first_step, keeps_eval=run_id is None)
        in_nonfinite, beta2, evaluated = left_before(rundir, step)
        writer = Writer(rundir.path, run_id or rundir.path.name)
        out = Background(rundir, writer, strict, stack.pop_all().close)
        return OpenedFolder(step, in_nonfinite, beta2, out, evaluated)


@contextmanager
def claim_folder(rundir: RunDir, holder: Holder, first_step: int | None) -> Iterator[None]:
    """Hold the folder's lock, after closing a Monitor of this process that holds it.

    There is such a Monitor when a notebook cell is run again. Raises RunBusyError when another
    process holds the folder, and ValueError when a Monitor of this process has recorded steps
    there and `first_step` does not say what becomes of them.
    """
    name = str(rundir.path.resolve())
    before = _OPEN.get(name)
    if before is not None and before.step and first_step is None:
        raise ValueError(
            f"{rundir.path}: another Monitor of this process records there, {before.step} steps so "
            "far; close it, or pass first_step=0 to start over, or another folder"
        )
    if before is not None:
        before.close()
    with rundir.lock():
        _OPEN[name] = holder
        known = weakref.ref(holder)
        del holder, before  # the lock outlives this call and must not keep a Monitor alive
        try:
            yield
        finally:
            if known() is not None and _OPEN.get(name) is known():
                del _OPEN[name]


def trim_folder(rundir: RunDir, first_step: int | None, keeps_eval: bool) -> int:
    """Make the folder, remove its rows at or after `first_step`, and return the first step.

    `keeps_eval`: keep evaluations at `first_step`. They are of the weights that the checkpoint
    holds, and a loop that evaluates before it saves does not make them again.

    Raises ValueError when `first_step` is not given and the folder holds steps.
    """
    rundir.path.mkdir(parents=True, exist_ok=True)
    recorded = steps_in(rundir.path) if first_step is None else None
    if recorded is not None:
        first, last = recorded
        raise ValueError(
            f"{rundir.path}: holds steps {first} to {last} already; pass first_step={last + 1} to "
            "go on after them, first_step=0 to start over (which removes them), or another folder"
        )
    step = first_step or 0
    trim(rundir.path, step, keeps_eval and step > 0)
    rundir.trim_entries(step)
    return step


def left_before(rundir: RunDir, step: int) -> tuple[bool, float | None, frozenset[tuple[str, int]]]:
    """Return whether the step before `step` was non-finite, the last beta2, and what was evaluated.

    A non-finite stretch that goes on over a restart is still one event. The evaluations are those
    at `step`, by metric and k.
    """
    run = StoredRun(rundir.path)
    scalars, evals = run.scalars().set_index("step"), run.evals()
    nonfinite, beta2 = (
        scalars["value"][scalars["name"] == name] for name in ("nonfinite_layers", "beta2")
    )
    there = evals[evals["step"] == step]
    evaluated = frozenset(zip(there["metric"].tolist(), there["k"].tolist(), strict=True))
    was_nonfinite = bool(nonfinite.get(step - 1, 0.0) > 0)
    return was_nonfinite, float(beta2.iloc[-1]) if len(beta2) else None, evaluated
