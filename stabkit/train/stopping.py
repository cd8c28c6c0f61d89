"""Signals that ask a training to stop: they set a flag, and the loop acts between two steps.

A handler that saved the state itself could store half an update.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# submitit's name for the signal that SLURM sends ahead of a time limit, and its default
PREEMPT_SIGNAL = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


class Stop:
    """`signal` is the first signal that asked for a stop; None before that."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_fork(number)
        elif self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once

    def _handle_in_fork(self, number: int) -> None:
        """Let a forked helper, which inherits the handler, end at once: it has nothing to save."""
        if number != PREEMPT_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let SIGTERM, SIGINT and the preemption signal ask for a stop instead of ending the process.

    The previous handlers are restored at the end. Python handles signals in the main thread only:
    in another thread none is caught, and a training ends with the program around it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, PREEMPT_SIGNAL))
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
