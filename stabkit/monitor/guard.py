"""Keeps an error of the Monitor's own from its user's training."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stabkit.store.background import Background

log = logging.getLogger("stabkit")


class Guard:
    """Reports each error once, as a warning of the logger "stabkit" and in the event log.

    With `strict` errors are raised, except those of a signal: no measurement is worth a training.
    `now`: updates made so far. `out`: the writer of events, None in a process that writes none.
    """

    def __init__(
        self, folder: Path, out: Background | None, strict: bool, now: Callable[[], int]
    ) -> None:
        self._folder, self._out, self._strict, self._now = folder, out, strict, now
        self._said: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Report an error of the body as one of `what`."""
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            self._report("monitor_failed", what, error)

    def signal_failed(self, name: str, error: Exception) -> None:
        """Report a signal that raised and is left out from now on."""
        self._report("signal_failed", name, error)

    def failed(self, what: str, reason: str) -> None:
        """Report that something is not recorded at all, and why, each `what` once."""
        self._tell("monitor_failed", what, reason, f"{what}: {reason}")

    def noticed(self, name: str, reason: str) -> None:
        """Report what a reader of the rows must know although it is no error, each name once."""
        if f"noticed {name}" in self._said:
            return
        self._said.add(f"noticed {name}")
        if self._out is not None:
            self._out.event("noticed", self._now(), name=name, reason=reason)
        with suppress(Exception):  # the user's log handler may raise
            log.warning("stabkit: %s: at step %d: %s", self._folder, self._now(), reason)

    def _report(self, kind: str, what: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._tell(kind, what, reason, f"{what} failed ({reason}); training goes on")

    def _tell(self, kind: str, what: str, reason: str, words: str) -> None:
        if what in self._said:
            return
        self._said.add(what)
        if self._out is not None:
            self._out.event(kind, self._now(), name=what, reason=reason)
        with suppress(Exception):  # the user's log handler may raise
            log.warning("stabkit: %s: %s", self._folder, words)
