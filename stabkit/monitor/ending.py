"""How a training ended: the state that a Monitor leaves in the status of its run."""

import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Callable
from typing import Any, NamedTuple

from stabkit.rundir import State

NOT_CLOSED = "the process ended without closing its Monitor"


class End(NamedTuple):
    """The final state of a run, and its reason."""

    state: State
    reason: str | None = None


def end_by(error: BaseException | None) -> End:
    """Return how a training ends that leaves its Monitor with `error`, or without one.

    `sys.exit()` and `sys.exit(0)` mean that it is done. Ctrl-C stops a training that can go on.
    """
    if isinstance(error, SystemExit):
        return _end_by_code(error.code)
    if isinstance(error, KeyboardInterrupt):
        return End("preempted", "KeyboardInterrupt")
    if error is None or isinstance(error, StopIteration | GeneratorExit):  # the data came to an end
        return End("done")
    return End("failed", _text(error))


def error_in_hand(before: int | None = None) -> BaseException | None:
    """Return the exception that is being handled, or passes through a `finally`, right now.

    `before`: the id of one that was in hand earlier and does not count.
    """
    error = sys.exc_info()[1]
    return error if id(error) != before else None


class ProcessEnd:
    """Tells how this process ends, asked by a Monitor that is still open then.

    An uncaught exception is in `sys.last_value`. The code of an exit is kept nowhere, so `sys.exit`
    and `exit` are wrapped while a Monitor is open: the wrappers note the code and pass it on. If
    another step follows an exit or an error, it was caught and no longer counts.

    Not seen: the code of a `raise SystemExit(code)`, and of `sys.exit(main())`, which looks
    `sys.exit` up before main makes the Monitor. An exit that is caught and not followed by a step
    counts as the end.
    """

    def __init__(self) -> None:
        self._open = 0
        self._error_before: int | None = None  # its id, so that it is not kept alive
        self._by_exit: End | None = None
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was, what is

    def open(self) -> None:
        """Begin to watch, for one Monitor more."""
        self._open += 1
        if self._open == 1:
            self.goes_on()
            self._wrap(sys, "exit")
            self._wrap(Quitter, "__call__")  # `exit` and `quit`

    def close(self) -> None:
        """Stop watching, for one Monitor less."""
        self._open -= 1
        if self._open == 0:
            for owner, name, before, ours in self._replaced:
                if getattr(owner, name) is ours:  # else somebody's wrapper is above it
                    setattr(owner, name, before)
            self._replaced = []

    def goes_on(self) -> None:
        """Note that the process still trains, so what was raised so far did not end it."""
        self._error_before, self._by_exit = id(_last_error()), None

    def so_far(self) -> End | None:
        """Return how the process ended by an exception or an exit; None if neither was seen."""
        error = _last_error()
        if error is not None and id(error) != self._error_before:
            return end_by(error)
        return self._by_exit

    def _wrap(self, owner: Any, name: str) -> None:
        before = getattr(owner, name)
        ours = self._noting(before)
        self._replaced.append((owner, name, before, ours))
        setattr(owner, name, ours)

    def _noting(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        def exit(*args: Any, **kwargs: Any) -> Any:
            try:
                return leave(*args, **kwargs)
            except SystemExit as error:
                if threading.current_thread() is threading.main_thread():
                    end = _with_cause(end_by(error), error.__context__)
                    self._by_exit = end if end.reason else End("done", NOT_CLOSED)
                raise

        exit.__doc__ = leave.__doc__
        return exit


PROCESS_END = ProcessEnd()


def _end_by_code(code: Any) -> End:
    if code is None or (isinstance(code, int) and code == 0):
        return End("done")
    return End("failed", f"SystemExit: {code}")


def _with_cause(end: End, handled: BaseException | None) -> End:
    """Add the exception that was being handled when a program chose to exit."""
    if end.state == "done" or handled is None:
        return end
    return End("failed", f"{_text(handled)} ({end.reason})")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _last_error() -> BaseException | None:
    """Return the uncaught exception that Python reported last (`last_exc` since 3.12)."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None
