"""Ways in which a script with a Monitor ends, each in a process of its own.

`python -m tests.monitor.endings FOLDER` runs all and prints how each exited. test_processes.py
checks what they record.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import stabkit
from tests.monitor.toy import Toy, written

STEPS = 21
KEPT: list[Any] = []  # what a script has at its top level lives until its end


def at_its_end(folder: Path) -> None:
    toy = Toy()
    monitor = toy.monitor(folder)
    KEPT.append(monitor)
    toy.steps(STEPS, monitor)


def of_a_function(folder: Path) -> None:
    toy = Toy()
    toy.steps(STEPS, toy.monitor(folder))


def by_exit(folder: Path) -> None:
    at_its_end(folder)
    sys.exit(3)


def by_exit_within(folder: Path) -> None:
    toy = Toy()
    with toy.monitor(folder) as monitor:
        toy.steps(STEPS, monitor)
        sys.exit(3)


def by_an_exception(folder: Path) -> None:
    at_its_end(folder)
    raise RuntimeError("of the training")


def by_an_exception_within_a_function(folder: Path) -> None:
    toy = Toy()
    toy.steps(STEPS, toy.monitor(folder))
    raise RuntimeError("of the training")


def by_an_exit_after_an_exception(folder: Path) -> None:
    """End as many scripts do that report their errors."""
    try:
        by_an_exception_within_a_function(folder)
    except RuntimeError:
        sys.exit(1)


def by_exit_with_a_message(folder: Path) -> None:
    at_its_end(folder)
    sys.exit("loss is nan, stopping training")


def by_the_builtin_exit(folder: Path) -> None:
    at_its_end(folder)
    exit(4)


def by_raising_system_exit(folder: Path) -> None:
    at_its_end(folder)
    raise SystemExit(5)


def by_exit_zero(folder: Path) -> None:
    at_its_end(folder)
    sys.exit(0)


def by_exit_zero_within(folder: Path) -> None:
    toy = Toy()
    with toy.monitor(folder) as monitor:
        toy.steps(STEPS, monitor)
        sys.exit()


def after_a_caught_exit_and_exception(folder: Path) -> None:
    """Train on after both."""
    toy = Toy()
    monitor = toy.monitor(folder)
    KEPT.append(monitor)
    toy.steps(STEPS - 1, monitor)
    with suppress(SystemExit):
        sys.exit(6)
    with suppress(RuntimeError):
        raise RuntimeError("caught")
    toy.steps(1, monitor)


def by_an_exit_that_is_caught(folder: Path) -> None:
    """Not told from one that is not, because no step follows."""
    at_its_end(folder)
    with suppress(SystemExit):
        sys.exit(6)


def of_two_monitors(folder: Path) -> None:
    """End within a step of the second: that its row is closed then is no sign of more training."""
    at_its_end(folder)
    at_its_end(folder / "other")
    KEPT[-1].before_clipping()
    raise RuntimeError("of both trainings")


def by_an_interrupt_within(folder: Path) -> None:
    toy = Toy()
    with suppress(KeyboardInterrupt), toy.monitor(folder) as monitor:
        toy.steps(STEPS, monitor)
        raise KeyboardInterrupt


def with_a_hook_of_the_users(folder: Path) -> None:
    sys.excepthook = lambda kind, error, trace: print(f"the user's hook: {error}", file=sys.stderr)
    at_its_end(folder)
    raise RuntimeError("told to a hook")


def after_its_monitor_was_closed(folder: Path) -> None:
    before = sys.exit
    at_its_end(folder)
    assert sys.exit is not before
    KEPT[0].close()
    assert sys.exit is before
    sys.exit(7)


def by_a_term_signal(folder: Path) -> None:
    at_its_end(folder)
    written(KEPT[0])
    os.kill(os.getpid(), signal.SIGTERM)


def killed_while_it_writes(folder: Path) -> None:
    """After the checkpoint of step 12, with the seventh part half written."""
    toy = Toy()
    monitor = toy.monitor(folder)
    toy.steps(12, monitor)
    monitor.flush()
    state = [toy.model.state_dict(), toy.optimizer.state_dict(), toy.data.get_state()]
    torch.save(state, folder / "checkpoint.pt")
    sync = os.fsync

    def kills(file: int) -> None:
        if len(list((folder / "layers").glob("part-*"))) == 6:
            os.truncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)

    os.fsync = kills
    toy.steps(STEPS, monitor)
    monitor.close()


def with_a_child(folder: Path) -> None:
    """Fork a process that uses all of the Monitor and ends as a script does."""
    toy = Toy()
    monitor = toy.monitor(folder)
    KEPT.append(monitor)
    toy.steps(8, monitor)
    if (pid := os.fork()) == 0:
        toy.steps(9, monitor)
        monitor.log(child=1.0)
        monitor.log_eval(3, "child", torch.ones(3), torch.ones(3))
        monitor.before_clipping()
        monitor.micro_batch()
        monitor.flush()
        monitor.close()
        return
    assert os.waitpid(pid, 0)[1] == 0
    # the child's end must not have let go of the folder
    if (pid := os.fork()) == 0:
        try:
            stabkit.Monitor(toy.model, toy.optimizer, folder, first_step=0)
        except stabkit.rundir.RunBusyError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    toy.steps(STEPS - 8, monitor)
    monitor.close()


ENDINGS: tuple[Callable[[Path], None], ...] = (
    at_its_end, of_a_function, by_exit, by_exit_within, by_an_exception,
    by_an_exception_within_a_function, by_an_exit_after_an_exception, by_exit_with_a_message,
    by_the_builtin_exit, by_raising_system_exit, by_exit_zero, by_exit_zero_within,
    after_a_caught_exit_and_exception, by_an_exit_that_is_caught, of_two_monitors,
    by_an_interrupt_within, with_a_hook_of_the_users,
    after_its_monitor_was_closed, by_a_term_signal, killed_while_it_writes, with_a_child,
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)  # libgomp's threads are not there after a fork, and it waits for them
    Toy().steps(1)  # what torch imports at its first step, once for all of them
    gc.freeze()  # what was imported is not searched for garbage as each process ends
    exits = {}
    for ending in ENDINGS:
        if (pid := os.fork()) == 0:
            ending(Path(sys.argv[1]) / ending.__name__)
            return
        exits[ending.__name__] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps(exits))


if __name__ == "__main__":
    main()
