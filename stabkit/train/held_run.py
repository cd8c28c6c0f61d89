"""The folder of a run while it trains: one run writes there, and a failure leaves its reason."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace

from stabkit.config import RunConfig, save_config
from stabkit.monitor.ranks import rank
from stabkit.rundir import HeldFolder, RunBusyError, RunDir, Status, atomic_write
from stabkit.train.parallel.agree import PeerError, PeerRefusedError, run_by_first
from stabkit.train.refusals import NOT_STARTED
from stabkit.train.request import claim


class HeldRun:
    """A run's folder while its lock is held, as each process of the run sees it.

    `status`: what it said last. `resumed`: whether there is a checkpoint to go on from.
    `check`: raises FileNotFoundError once the folder was deleted, moved or replaced.
    """

    def __init__(self, rundir: RunDir, status: Status | None, resumed: bool) -> None:
        self.rundir = rundir
        self.status = status
        self.resumed = resumed
        self.check = HeldFolder(rundir.path).check


@contextmanager
def hold_for_all(config: RunConfig, rundir: RunDir) -> Iterator[HeldRun]:
    """Hold `rundir.lock()` in the first process, on behalf of all processes of the run.

    Raises RunBusyError when another run holds it and ForeignFolderError when the folder is no
    longer free for this run; the other processes raise PeerRefusedError.
    """
    with ExitStack() as stack:

        def take() -> tuple[Status | None, bool]:
            stack.enter_context(rundir.lock())
            # asked again: only from here on can no other process change the answer
            return claim(config, rundir), rundir.checkpoint_file.exists()

        yield HeldRun(rundir, *run_by_first(take))


@contextmanager
def record_failure(
    config: RunConfig, rundir: RunDir, held: HeldRun | None = None, nccl: bool = False
) -> Iterator[None]:
    """Write the reason of a failure to the run's folder; a refusal leaves the folder as it is.

    The first process writes it, under the lock. `held`: the lock is held already. `nccl`: while
    steps are made, a process that fails writes its own reason as well, since the first one may
    never hear of it.
    """
    try:
        yield
    except (*NOT_STARTED, PeerRefusedError):
        raise
    except Exception as error:
        is_own = held is not None and nccl and not isinstance(error, PeerError)
        if rank() == 0 or is_own:
            if held is not None:
                held.check()  # a folder that is gone is not made anew
            # a full disk takes no reason; the error itself says what went wrong first
            with suppress(OSError, RunBusyError), nullcontext() if held else rundir.lock():
                _write_reason(config, rundir, error)
        raise


def _write_reason(config: RunConfig, rundir: RunDir, error: Exception) -> None:
    who = f"process {rank()}: " if rank() else ""
    reason = f"{who}{type(error).__name__}: {error}"
    failed = rundir.last_status() or Status("failed", steps=config.end)
    with suppress(OSError):  # a full disk takes no new line, but it lets a status be replaced
        if not rundir.config_file.exists():
            write_config(config, rundir)
        rundir.append_entry("failed", reason=reason)
    rundir.write_status(replace(failed, state="failed", reason=reason))


def write_config(config: RunConfig, rundir: RunDir) -> None:
    """Write the settings before anything else, so that the folder says which run it belongs to."""
    atomic_write(rundir.config_file, save_config(config).encode())
