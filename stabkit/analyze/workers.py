"""Apply one function to many runs in several processes, as if in one."""

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_IT = 40  # items; with fewer, starting processes takes longer than the work
AT_MOST = 6  # processes of 200 MiB each, so less than 2 GiB in all


def each(
    act: Callable[[Item], Result], items: Sequence[Item], processes: int = 1
) -> Iterator[Result]:
    """Yield `act(item)` for every item, in order, with its warnings.

    `act` must be a function of a module. A script that asks for processes must keep its own start
    behind `if __name__ == "__main__"`. Raises OSError if a process was killed.
    """
    processes = min(processes, AT_MOST)
    if processes < 2 or len(items) < WORTH_IT:
        yield from map(act, items)
        return
    # several at a time, since each trip to a process costs as much as a small run
    together = max(1, min(8, len(items) // (4 * processes)))
    batches = [items[i : i + together] for i in range(0, len(items), together)]
    # spawn, because a fork of a process with threads (pyarrow has some) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _leave_interrupts) as pool:
        try:
            for done, error in pool.map(partial(_listen, act), batches):
                for result, caught in done:
                    for warning in caught:
                        warnings.warn(warning, stacklevel=2)
                    yield result
                if error is not None:
                    raise error
        except BrokenProcessPool:
            raise OSError(
                "a process of the analysis was killed; is there too little memory?"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ignore Ctrl-C, which reaches all processes: the main process answers it alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _listen(
    act: Callable[[Item], Result], items: Sequence[Item]
) -> tuple[list[tuple[Result, list[Warning]]], Exception | None]:
    """Return each result of `act` with the warnings that it gave, up to the first error."""
    done: list[tuple[Result, list[Warning]]] = []
    for item in items:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = act(item)
            except Exception as error:
                return done, error
        done.append((result, [w.message for w in caught if isinstance(w.message, Warning)]))
    return done, None
