"""A run's folder, written by a thread of its own: no disk, slow or full, holds the training up."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer

MOST_WAITING = 256  # intervals for a slow disk; what comes after is lost, and said to be
MOST_ROWS = 2**20  # of a table, for a full one; the oldest go
log = logging.getLogger("stabkit")

Add = Callable[[Writer], None]


class Background:
    """Rows and events of a run, in the order they come.

    What a disk does not take is tried again with what comes next. Not `strict`: a failure is said
    once and left in the event log. `strict`: it is raised by the next call, and all rows are kept.
    """

    def __init__(self, rundir: RunDir, writer: Writer, strict: bool) -> None:
        self.rundir, self.writer, self.strict = rundir, writer, strict
        self.error: Exception | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._events: list[tuple[str, int | None, dict[str, Any]]] = []
        self._failed = False
        self._lost_intervals = self._lost_rows = 0
        self._thread = threading.Thread(target=self._run, name="stabkit", daemon=True)
        self._thread.start()

    def add(self, *acts: Add) -> None:
        """Rows to be added to the writer, and written."""
        self._raise()
        if self._queue.qsize() >= MOST_WAITING and not self.strict:
            self._lost_intervals += 1
            return
        self._queue.put(lambda: self._write(acts))

    def event(self, kind: str, step: int | None = None, **facts: Any) -> None:
        self._queue.put(lambda: self._events.append((kind, step, facts)))

    def status(self, status: Status) -> None:
        self._queue.put(lambda: self.rundir.write_status(status))

    def wait(self) -> None:
        """Until everything so far is on disk, or was found not to be writable."""
        if self._thread.is_alive():
            self._queue.put(lambda: self._write(()))
            self._queue.join()
        self._raise()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self._thread.is_alive():
                self._queue.put(None)
                self._thread.join()

    def _raise(self) -> None:
        if self.strict and self.error is not None:
            error, self.error = self.error, None
            raise error

    def _run(self) -> None:
        while (act := self._queue.get()) is not None:
            try:
                act()
            except Exception as error:
                self._fail(error)
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, acts: tuple[Add, ...]) -> None:
        for act in acts:
            act(self.writer)
        if self._lost_intervals or self._lost_rows:
            facts = {"intervals": self._lost_intervals, "rows": self._lost_rows}
            self._events.append(("rows_lost", None, facts))
            self._lost_intervals = self._lost_rows = 0
        self.writer.flush()
        self._write_events()
        self._failed = False

    def _write_events(self) -> None:
        while self._events:
            kind, step, facts = self._events[0]
            self.rundir.append_event(kind, step, **facts)
            self._events.pop(0)

    def _fail(self, error: Exception) -> None:
        self.error = error
        if self.strict:
            return
        if not self._failed:
            self._failed = True
            reason = f"{type(error).__name__}: {error}"
            log.warning(
                "stabkit: %s cannot be written (%s); training goes on, the rows wait",
                self.rundir.path,
                reason,
            )
            self._events.append(("write_failed", None, {"reason": reason}))
        self._lost_rows += self.writer.drop_oldest(MOST_ROWS)
        with suppress(OSError):  # the event log may be writable where a table is not
            self._write_events()
