"""A training of one second that records everything: evaluations, checkpoints, events."""

import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import stabkit.train.loop as loop
from stabkit.rundir import RunDir
from stabkit.train.data.batches import Batch
from tests.conftest import small_config
from tests.faults.writes import die_at, full_at
from tests.train.test_resume import assert_same_run, signalled_in_a_step

CONFIG = small_config(
    "data.num_train=16",
    "data.num_heldout=8",
    "model.depth=1",
    "train.batch=4",
    "train.steps=6",
    "optim.warmup_steps=2",
    "optim.skip_nonfinite=true",
    "knn.every=3",
    "knn.queries=8",
    "knn.bank=8",
    "runtime.checkpoint_every=2",
    "runtime.flush_every=2",
)
NEVER_FULL = 3  # exit code of a process that ended before the disk was full
NONFINITE = (1, 3, 4)  # two events; the second spans two steps and a checkpoint between them


def warm_up() -> None:
    """Make some steps non-finite, for their events; train one whole run, for its imports."""
    train_step = loop.train_step

    def step(config: Any, state: Any, monitor: Any, batch: Batch, number: int, *rest: Any) -> None:
        if number in NONFINITE:
            batch.view1.fill_(float("nan"))
        train_step(config, state, monitor, batch, number, *rest)

    loop.train_step = step
    os.fsync = lambda file: None  # a killed process loses nothing that the kernel has
    with tempfile.TemporaryDirectory() as folder:
        whole(Path(folder) / "run")


def whole(folder: Path) -> None:
    loop.train(CONFIG, RunDir(folder))


def killed(folder: Path, at: int) -> None:
    die_at(at)
    whole(folder)


def on_a_full_disk(folder: Path, at: int, lasting: bool) -> int:
    writes = full_at(at, lasting)
    whole(folder)
    return NEVER_FULL if writes.count < at else 0


def signalled(folder: Path, which: signal.Signals, at: int) -> None:
    """Send the signal to this process in its `at`-th step."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some signals leave a core file
    if which != signal.SIGPIPE:  # Python ignores it
        signal.signal(which, signal.SIG_DFL)
    signalled_in_a_step(at, which)
    whole(folder)


def assert_bit_equal(folder: Path, unbroken: Path) -> None:
    """Compare tables, evaluations, weights and events; not when processes began and ended."""
    assert_same_run(folder, unbroken)
    assert observed(folder) == observed(unbroken)
    status, whole = RunDir(folder).read_status(), RunDir(unbroken).read_status()
    assert status is not None
    assert whole is not None
    assert (status.state, status.step, status.knn) == ("done", whole.step, whole.knn)
    assert status.events == whole.events
    left = [path.name for path in folder.rglob("*.tmp")]
    assert not left, "a half-written file stays"


def observed(folder: Path) -> list[dict[str, Any]]:
    events = RunDir(folder).read_entries()
    return [{k: v for k, v in e.items() if k != "time"} for e in events if e["kind"] == "nonfinite"]
