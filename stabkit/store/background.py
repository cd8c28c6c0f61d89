"""Writes a run's folder in a thread, so that a slow or full disk never holds up the training."""

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer

MOST_WAITING = 256  # intervals that wait for a slow disk; later ones are lost, and reported
MOST_ROWS = 2**20  # rows of a table that wait for a full disk; the oldest are dropped
MOST_EVENTS = 2**12  # the same limit, for events
LONGEST_WAIT_S = 30.0  # how long the end of a training waits for a disk that takes nothing
log = logging.getLogger("stabkit")

Add = Callable[[Writer], None]


class Background:
    """Writes rows and events of a run, in the order they come.

    Rows that could not be written are tried again together with the next ones. Without `strict` a
    failure is reported once and entered in the log. With `strict` the next call raises it,
    and all rows are kept.

    `at_end` is called after the last write, which may be long after `close` if the disk hangs.
    Nobody else may write to the folder before that.
    """

    def __init__(
        self, rundir: RunDir, writer: Writer, strict: bool, at_end: Callable[[], None]
    ) -> None:
        self.rundir, self.writer, self.strict = rundir, writer, strict
        self.error: Exception | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._events: list[tuple[str, int | None, dict[str, Any]]] = []
        self._status: Status | None = None
        self._last: Status | None = None
        self._failed = False
        # Each counter is written by one thread only: one that both change could lose a count.
        self._lost_intervals = self._told_intervals = 0
        self._refused_events = self._told_events = 0  # those for which no room was left in line
        self._lost_rows = self._lost_events = 0
        self._done = 0  # acts that the thread has finished
        self._hung_at = -1
        self._at_end = at_end
        self._thread = threading.Thread(target=self._run, name="stabkit", daemon=True)
        self._thread.start()

    def add(self, *acts: Add) -> None:
        """Queue acts that add rows to the writer, which then writes them."""
        if self._queue.qsize() < MOST_WAITING or self.strict:
            self._queue.put(lambda: self._write(acts))
        else:
            self._lost_intervals += 1
        self._raise()

    def event(self, kind: str, step: int | None = None, **facts: Any) -> None:
        """Queue a line for the log."""
        if self._queue.qsize() < MOST_EVENTS or self.strict:
            self._queue.put(lambda: self._write_event(kind, step, facts))
        else:
            self._refused_events += 1

    def status(self, status: Status) -> None:
        """Queue a status; only the most recent pending one is written."""
        self._status = self._last = status
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(self._write_status)

    def wait(self) -> None:
        """Wait until everything so far is on disk, or was found not to be writable.

        Without `strict`, give up on a disk that takes nothing for LONGEST_WAIT_S.
        """
        if self._thread.is_alive():
            written = threading.Event()
            self._queue.put(lambda: self._write(()))
            self._queue.put(written.set)
            before = self._done
            while not written.wait(None if self.strict else self._patience()):
                if self._done == before:
                    self._hang(before)
                    break
                before = self._done
        self._raise()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._queue.put(None)
            if self._hung_at != self._done:
                self._thread.join()
        if not self._thread.is_alive() and not self.strict:
            self._say_lost()

    def leave(self) -> None:
        """Close without waiting now; the end of the interpreter waits."""
        self._queue.put(None)
        atexit.register(self._thread.join, LONGEST_WAIT_S)

    def _patience(self) -> float:
        """Return how long to wait. Don't wait twice for a hung disk."""
        return 0.0 if self._hung_at == self._done else LONGEST_WAIT_S

    def _hang(self, done: int) -> None:
        if self._hung_at != done:
            self._hung_at = done
            log.warning(
                "stabkit: %s: the disk has taken nothing for %g s; not waiting for it any longer: "
                "what is not written when the process ends is lost",
                self.rundir.path,
                LONGEST_WAIT_S,
            )

    def _say_lost(self) -> None:
        if lost := self._lost():
            log.warning("stabkit: %s: %s", self.rundir.path, lost)

    def _tell_lost(self) -> None:
        """Write what was lost into the last status: it replaces one, so it fits on a full disk."""
        lost = self._lost()
        if self._last is not None and lost:
            reason = f"{self._last.reason}; {lost}" if self._last.reason else lost
            self._status = replace(self._last, reason=reason)
            self._write_status()

    def _lost(self) -> str:
        rows = self.writer.rows_waiting + self._lost_rows
        events = len(self._events) + self._lost_events + self._refused_events - self._told_events
        if not rows and not events:
            return ""
        return f"{rows} rows and {events} events could not be written and are lost"

    def _raise(self) -> None:
        error, self.error = self.error, None
        if self.strict and error is not None:
            raise error

    def _run(self) -> None:
        while (act := self._queue.get()) is not None:
            try:
                act()
            except Exception as error:
                with suppress(Exception):  # a handler of the log may raise: this thread goes on
                    self._fail(error)
            self._done += 1
        with suppress(Exception):
            self._tell_lost()
        self._at_end()

    def _write(self, acts: tuple[Add, ...]) -> None:
        for act in acts:
            act(self.writer)
        self.writer.flush()
        self._write_events()
        intervals = self._lost_intervals - self._told_intervals
        refused = self._refused_events - self._told_events
        events = self._lost_events + refused
        if intervals or self._lost_rows or events:
            facts = {"intervals": intervals, "rows": self._lost_rows, "events": events}
            self._events.append(("rows_lost", None, facts))
            self._told_intervals += intervals
            self._told_events += refused
            self._lost_rows = self._lost_events = 0
            self._write_events()
        self._write_status()
        self._failed, self.error = False, None

    def _write_event(self, kind: str, step: int | None, facts: dict[str, Any]) -> None:
        self._events.append((kind, step, facts))
        self.writer.check_folder()
        self._write_events()

    def _write_events(self) -> None:
        while self._events:
            kind, step, facts = self._events[0]
            self.rundir.append_entry(kind, step, **facts)
            self._events.pop(0)

    def _write_status(self) -> None:
        status, self._status = self._status, None
        if status is None:
            return
        try:
            self.writer.check_folder()
            self.rundir.write_status(status)
        except OSError:
            self._status = self._status or status
            raise

    def _fail(self, error: Exception) -> None:
        self.error = error
        if self.strict:
            return
        said, self._failed = self._failed, True
        reason = f"{type(error).__name__}: {error}"
        if not said:
            self._events.append(("write_failed", None, {"reason": reason}))
        self._lost_rows += self.writer.drop_oldest(MOST_ROWS)
        while len(self._events) > MOST_EVENTS:
            self._events.pop(1)  # the first one says why
            self._lost_events += 1
        with suppress(OSError):  # the log may be writable where a table is not
            self.writer.check_folder()
            self._write_events()
        if not said:
            log.warning(
                "stabkit: %s cannot be written (%s); training goes on, the rows wait",
                self.rundir.path,
                reason,
            )
