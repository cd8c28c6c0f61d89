"""The folder a Monitor writes to: whose it is, and what is in it already."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from stabkit.rundir import RunDir, claim_for_monitor
from stabkit.store.background import Background
from stabkit.store.reader import Run
from stabkit.store.writer import Writer, steps_in, trim

if TYPE_CHECKING:
    from stabkit.monitor.monitor import Monitor

_OPEN: "weakref.WeakValueDictionary[str, Monitor]" = weakref.WeakValueDictionary()


@contextmanager
def hold(rundir: RunDir, monitor: "Monitor", first_step: int | None) -> Iterator[None]:
    """The folder's lock. A Monitor of this process that has it, as of a notebook cell that is run
    again, is closed first.

    Raises RunBusyError when another process has it, ValueError when a Monitor of this one has
    recorded steps there and `first_step` does not say what becomes of them.
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
        _OPEN[name] = monitor
        one = weakref.ref(monitor)
        del monitor, before  # whoever holds the folder must not keep a Monitor alive
        try:
            yield
        finally:
            if one() is not None and _OPEN.get(name) is one():
                del _OPEN[name]


class Opened(NamedTuple):
    """A folder that is ours: where the recording starts, and what the steps before leave to it."""

    step: int
    in_nonfinite: bool
    beta2: float | None
    out: Background


def open_folder(
    rundir: RunDir,
    monitor: "Monitor",
    first_step: int | None,
    run: str | None,
    strict: bool,
    locked: bool,
) -> Opened:
    """Raises what `hold` and `prepare` do, and ForeignFolderError when the folder is not one for a
    Monitor; nothing is held then."""
    with ExitStack() as stack:
        if not locked:
            claim_for_monitor(rundir)
            stack.enter_context(hold(rundir, monitor, first_step))
        step = prepare(rundir, first_step)
        left = left_by(rundir, step)
        writer = Writer(rundir.path, run or rundir.path.name)
        return Opened(step, *left, Background(rundir, writer, strict, stack.pop_all().close))


def prepare(rundir: RunDir, first_step: int | None) -> int:
    """Make the folder and remove what is at or after `first_step`; returns the first step.

    Raises ValueError when it is not given and the folder holds steps.
    """
    rundir.path.mkdir(parents=True, exist_ok=True)
    held = steps_in(rundir.path) if first_step is None else None
    if held is not None:
        first, last = held
        raise ValueError(
            f"{rundir.path}: holds steps {first} to {last} already; pass first_step={last + 1} to "
            "go on after them, first_step=0 to start over (which removes them), or another folder"
        )
    step = first_step or 0
    trim(rundir.path, step)
    rundir.trim_events(step)
    return step


def left_by(rundir: RunDir, step: int) -> tuple[bool, float | None]:
    """What the steps before `step` leave to those after: whether the last was non-finite, since a
    stretch that a restart falls into is still one event, and the beta2 recorded last."""
    scalars = Run(rundir.path).scalars().set_index("step")
    nonfinite, beta2 = (
        scalars["value"][scalars["name"] == name] for name in ("nonfinite_layers", "beta2")
    )
    return bool(nonfinite.get(step - 1, 0.0) > 0), float(beta2.iloc[-1]) if len(beta2) else None
