"""How a training ended: the state that a Monitor leaves in the status of its run."""

import dis
import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from stabkit.rundir import State

NOT_CLOSED = "the process ended without closing its Monitor"


class End(NamedTuple):
    """The final state of a run, and its reason."""

    state: State
    reason: str | None = None


def end_by(error: BaseException | None) -> End:
    """Return how a training ends that leaves its Monitor with `error`, or without one.

    `sys.exit()` and `sys.exit(0)` are the wish to end, and Ctrl-C stops a training that can go on.
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
    and `exit` are wrapped while a Monitor is open: the wrappers note the code and pass it on. What
    they noted counts only if the main program was really left by an exception, and not if somebody
    caught it and the program went on to its end.
    """

    def __init__(self) -> None:
        self._open = 0
        self._main: FrameType | None = None  # of the main program
        self._error_before: int | None = None  # its id, so that it is not kept alive
        self._by_exit: End | None = None
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was, what is

    def open(self) -> None:
        """Begin to watch, for one Monitor more."""
        self._open += 1
        if self._open == 1:
            self._main, self._by_exit = _main_frame(_main_thread()), None
            self._error_before = id(_last_error())
            self._wrap(sys, "exit")
            self._wrap(Quitter, "__call__")  # `exit` and `quit`

    def close(self) -> None:
        """Stop watching, for one Monitor less."""
        self._open -= 1
        if self._open == 0:
            self._main = self._error_before = None
            for owner, name, before, ours in self._replaced:
                if getattr(owner, name) is ours:  # else somebody's wrapper is above it
                    setattr(owner, name, before)
            self._replaced = []

    def place(self) -> int:
        """Return where the main program is; the same number as long as it is in one call."""
        return self._main.f_lasti if self._main is not None else -1

    def so_far(self, made_at: int, stepped_at: int) -> End | None:
        """Return how the process ended, or None while its main program runs.

        `made_at`, `stepped_at`: the `place` when the Monitor was made and when a step ran last.
        """
        if self._main is None or self._main in _main_thread():
            return None
        if _has_returned(self._main):
            return End("done", NOT_CLOSED)
        error = _last_error()
        if error is not None and id(error) != self._error_before:
            return end_by(error)
        if self._by_exit is not None:
            return self._by_exit if self._by_exit.reason else End("done", NOT_CLOSED)
        # What is left is `raise SystemExit(...)`, and `sys.exit(main())`, which looks `sys.exit` up
        # before main makes the Monitor. If one call of the main program did the whole training and
        # came back, that is the common last line of a script.
        if made_at == stepped_at != self.place():
            return End("done", NOT_CLOSED)
        return End("failed", f"SystemExit, its code is not known; {NOT_CLOSED}")

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
                    self._by_exit = _with_cause(end_by(error), error.__context__)
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


def _main_thread() -> list[FrameType]:
    """Return the frames of the main thread, the outermost one last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _main_frame(frames: list[FrameType]) -> FrameType | None:
    """Return the frame of the main program: the outermost one of a module, if there is one.

    Its variables are those of the module, so to hold it keeps nothing alive.
    """
    modules = (frame for frame in reversed(frames) if frame.f_code.co_name == "<module>")
    return next(modules, None)


def _has_returned(frame: FrameType) -> bool:
    """Return whether a frame that is over came to its end, and was not left by an exception."""
    last = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return last.startswith("RETURN_")
