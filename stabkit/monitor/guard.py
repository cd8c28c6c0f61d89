"""What keeps an error of the Monitor's own from its user's training."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stabkit.store.background import Background

log = logging.getLogger("stabkit")


class Guard:
    """Errors are said once, as a warning of the logger "stabkit", and left in the event log.

    `strict`: they are raised, but for those of a signal: no measurement is worth a training.
    """

    def __init__(self, folder: Path, strict: bool, now: Callable[[], int]) -> None:
        self.out: Background | None = None
        self._folder, self._strict, self._now = folder, strict, now
        self._said: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            self._report("monitor_failed", what, error)

    def signal_failed(self, name: str, error: Exception) -> None:
        self._report("signal_failed", name, error)

    def noticed(self, name: str, reason: str) -> None:
        """Of the training, and no error: what a reader of the rows must know. Each name once."""
        if f"noticed {name}" in self._said:
            return
        self._said.add(f"noticed {name}")
        if self.out is not None:
            self.out.event("noticed", self._now(), name=name, reason=reason)
        with suppress(Exception):  # of the user's logging
            log.warning("stabkit: %s: at step %d: %s", self._folder, self._now(), reason)

    def _report(self, kind: str, what: str, error: Exception) -> None:
        if what in self._said:
            return
        self._said.add(what)
        reason = f"{type(error).__name__}: {error}"
        if self.out is not None:
            self.out.event(kind, self._now(), name=what, reason=reason)
        with suppress(Exception):  # of the user's logging
            log.warning("stabkit: %s: %s failed (%s); training goes on", self._folder, what, reason)
