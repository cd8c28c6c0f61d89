"""Checkpoints, and those of them that are kept: the ring of whole states in `states/`."""

import errno
import logging
from collections.abc import Callable

from stabkit.config import RunConfig
from stabkit.rundir import Ring, RunDir

log = logging.getLogger("stabkit")

FULL = (errno.ENOSPC, errno.EDQUOT)


def save_and_keep(config: RunConfig, rundir: RunDir, step: int, save: Callable[[], None]) -> None:
    """Write rows and the checkpoint of `step` by `save`, and keep the checkpoint in the ring too.

    Rows and checkpoints come first: on a full disk the ring gives up its states one by one until
    there is room, and it leaves room for the next ones. What cannot be kept is told in the log, and
    the training goes on.
    """
    ring = ring_of(config, rundir)
    given_up = 0
    while True:
        try:
            save()
            break
        except OSError as error:
            if error.errno not in FULL or not ring.give_up_one():
                raise
            given_up += 1
    if config.runtime.keep_states and not given_up:
        try:
            ring.link(rundir.checkpoint_file, step)
        except OSError as error:
            tell(rundir, "state_not_kept", step, reason=str(error))
    if config.runtime.keep_states:
        given_up += ring.leave_room(rundir.checkpoint_file)
    if given_up:
        tell(rundir, "states_given_up", step, count=given_up, reason="no room for the checkpoint")


def pin_before(config: RunConfig, rundir: RunDir, cause: str, onset: int) -> None:
    """Pin the states that stand before an event; what fails is told in the log."""
    if not config.runtime.keep_states:
        return
    try:
        for state in ring_of(config, rundir).pin_before(onset):
            tell(rundir, "pinned", state.step, cause=cause, onset=onset)
    except (OSError, ValueError) as error:
        tell(rundir, "not_pinned", onset, cause=cause, reason=str(error))


def ring_of(config: RunConfig, rundir: RunDir) -> Ring:
    runtime = config.runtime
    return Ring(rundir.states_folder, runtime.keep_states, runtime.checkpoint_every)


def tell(rundir: RunDir, kind: str, step: int, **facts: object) -> None:
    """Write a line to the log, or at least warn: a full disk may take none."""
    try:
        rundir.append_entry(kind, step, **facts)
    except OSError:
        words = ", ".join(f"{name} {value}" for name, value in facts.items())
        log.warning("stabkit: %s: %s at step %d: %s", rundir.path, kind, step, words)
