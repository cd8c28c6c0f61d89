"""Show status rows while runs go on: a live table on a terminal, or a line a change of state."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from stabkit.printing import bare_stdout, one_line
from stabkit.sweep.looks import JUDGED, Look, Looks
from stabkit.sweep.status import ENDED, Row
from stabkit.sweep.table import cells, remarks, status_table, totals

WATCH_EVERY_S = 15.0  # SLURM is asked each time, and should not be asked too often
QUIET = ("waiting", "done")  # states that are counted when a screen is too small
UNDER_WAY = ("waiting", "running", "unstable")
DRAWN = 2_000  # runs; a table of 10,000 takes six seconds to draw, their lines a third of one
OWN_LINES = 5  # of a table, beside its rows: its header, the totals, the runs left out


@contextmanager
def live_status(read: Callable[[], Sequence[Row]]) -> Iterator[Callable[[], None]]:
    """Yield a function to call often; it redraws, or prints lines, at most once a second."""
    if sys.stdout.isatty():
        console, looks = Console(file=bare_stdout()), Looks()
        began = time.monotonic()

        def draw() -> Group:
            return _fitting(read(), console, looks, time.monotonic() - began)

        # Redrawn only when asked to: the launcher shares its cores with the runs.
        with Live(draw(), console=console, auto_refresh=False, transient=True) as live:
            yield _at_most_every(1.0, lambda: live.update(draw(), refresh=True))
        console.print(whole_table(read(), console.width, looks))
        return
    lines = _Lines(read)
    yield _at_most_every(1.0, lines.update)
    lines.update()


@contextmanager
def shown_meanwhile(read: Callable[[], Sequence[Row]]) -> Iterator[None]:
    """Show the rows from a thread of its own until the block ends; nothing without a terminal."""
    if not sys.stdout.isatty():
        yield
        return
    ended = threading.Event()
    with live_status(read) as tick:

        def draw() -> None:
            try:
                while not ended.wait(1.0):
                    tick()
            except OSError:  # the terminal or the folder is gone; the block says so, if it matters
                return

        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def whole_table(rows: Sequence[Row], width: int, looks: Looks | None = None) -> Group:
    """Return all rows as a table; with many runs, without what takes time to find out.

    With very many runs they are plain lines, which take much less time than a table.
    """
    if len(rows) > DRAWN:
        return Group(*map(Text, status_lines(rows)), Text(totals(rows), "bold"))
    return status_table(rows, _looks_of_few(rows, looks or Looks()), width=width)


def status_lines(rows: Sequence[Row]) -> list[str]:
    """Return each run as a plain line; with many runs, without verdicts."""
    found = _looks_of_few(rows, Looks()) or {}
    return [status_line(row, found.get(row.path)) for row in rows]


def _looks_of_few(rows: Sequence[Row], looks: Looks) -> dict[str, Look] | None:
    return {row.path: looks.of(row) for row in rows} if len(rows) <= JUDGED else None


def _fitting(
    rows: Sequence[Row], console: Console, looks: Looks, so_far: float | None = None
) -> Group:
    """Return a table that fits a screen: runs under way or failed first, the rest counted."""
    room = max(1, console.height - OWN_LINES)
    order = sorted(range(len(rows)), key=lambda i: rows[i].state in QUIET)
    shown = [rows[i] for i in sorted(order[:room])]
    found = {row.path: looks.of(row) for row in shown}
    rest = [rows[i] for i in order[room:]]
    return status_table(shown, found, rest, so_far, console.width)


def status_line(row: Row, look: Look | None = None) -> str:
    """Return one run as a plain line."""
    step, rate, left, knn, events = cells(row)
    verdict = look.verdict if look is not None and row.state in ENDED else None
    words = [f"{row.state:<11}", one_line(row.run)] + [verdict] * bool(verdict)
    words += [f"step {step}"] * bool(step)
    words += [f"{rate} images/s"] * bool(rate) + [f"{left} left"] * bool(left)
    words += [f"kNN {knn} %"] * bool(knn) + [events] * bool(events)
    words += [f"({text})" for text in remarks(row)]
    return "  ".join(map(str, words))


def watch(read: Callable[[], Sequence[Row]]) -> None:
    """Show the rows again every few seconds, until no run is under way."""
    rows = read()
    if not sys.stdout.isatty():
        print("\n".join(status_lines(rows)), flush=True)
    with live_status(lambda: rows) as tick:
        while any(row.state in UNDER_WAY or row.job_state for row in rows):
            time.sleep(WATCH_EVERY_S)
            rows = read()
            tick()


class _Lines:
    """Print a run when its state changes, with the totals when it ends, and nothing else."""

    def __init__(self, read: Callable[[], Sequence[Row]]) -> None:
        self.read = read
        self.states = {row.run: row.state for row in read()}
        self.looks = Looks()

    def update(self) -> None:
        rows = self.read()
        changed = [row for row in rows if self.states.get(row.run) != row.state]
        ended = sum(row.state not in UNDER_WAY for row in changed)
        for row in changed:
            look = self.looks.of(row) if row.state in ENDED else None
            total = f"  [{totals(rows, ended=ended)}]" if row.state not in UNDER_WAY else ""
            print(status_line(row, look) + total, flush=True)
            self.states[row.run] = row.state


def _at_most_every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `act`, unless it did so less than `seconds` ago."""
    last = 0.0

    def act_if_due() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return act_if_due
