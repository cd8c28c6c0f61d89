"""Show status rows: a live table on a terminal, plain lines in a log."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stabkit.printing import bare_stdout, one_line
from stabkit.sweep.status import Row

LINES_EVERY_S = 20.0
WATCH_EVERY_S = 15.0  # SLURM is asked each time, and should not be asked too often
QUIET = ("waiting", "done")  # states that are counted when a screen is too small
UNDER_WAY = ("waiting", "running", "unstable")
STYLE = {
    "done": "green",
    "running": "cyan",
    "unstable": "magenta",
    "preempted": "yellow",
    "failed": "red",
    "lost": "red",
}


@contextmanager
def live_status(read: Callable[[], Sequence[Row]]) -> Iterator[Callable[[], None]]:
    """Yield a function to call often; it redraws, or prints lines, at most once a second."""
    if sys.stdout.isatty():
        console = Console(file=bare_stdout())

        def draw() -> Table:
            return _fitting(read(), console.height)

        # Redrawn only when asked to: the launcher shares its cores with the runs.
        with Live(draw(), console=console, auto_refresh=False, transient=True) as live:
            yield _at_most_every(1.0, lambda: live.update(draw(), refresh=True))
        console.print(status_table(read()))
        return
    lines = _Lines(read)
    yield _at_most_every(1.0, lines.update)
    lines.update()


def _fitting(rows: Sequence[Row], height: int) -> Table:
    """Return a table that fits a screen: runs under way or failed first, the rest counted."""
    room = max(1, height - 3)
    if len(rows) <= room:
        return status_table(rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i].state in QUIET)
    table = status_table([rows[i] for i in sorted(order[:room])])
    rest = Counter(rows[i].state for i in order[room:])
    counts = ", ".join(f"{count:,} {state}" for state, count in rest.items())
    table.add_row(Text(f"and {counts}", "dim"))
    return table


def status_table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "step", "images/s", "left", "kNN", "events"):
        words = name in ("state", "events")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        # As Text, since brackets in a name or a reason are not markup.
        state = Text(row.state, STYLE.get(row.state, ""))
        table.add_row(Text(one_line(row.run)), state, *map(Text, _cells(row)))
        for text in _remarks(row):
            table.add_row(Text(f"  {text}", "dim"))
    return table


def status_line(row: Row) -> str:
    """Return one run as a plain line."""
    step, rate, left, knn, events = _cells(row)
    words = [f"{row.state:<11}", one_line(row.run)] + [f"step {step}"] * bool(step)
    words += [f"{rate} images/s"] * bool(rate) + [f"{left} left"] * bool(left)
    words += [f"kNN {knn}"] * bool(knn) + [events] * bool(events)
    words += [f"({text})" for text in _remarks(row)]
    return "  ".join(words)


def _remarks(row: Row) -> list[str]:
    """Return the reason of a run's state, and the log of one that failed or is lost."""
    log = [f"log: {row.log}"] if row.log and row.state in ("failed", "lost") else []
    why = [" ".join(row.reason.split("\n")), *log] if row.reason else log
    return [one_line(text) for text in why]


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    step = f"{row.step}/{row.steps}" if row.steps else str(row.step or "")
    rate = f"{row.images_per_s:.0f}" if row.images_per_s and row.eta_s is not None else ""
    left = f"{int(row.eta_s) // 60}:{int(row.eta_s) % 60:02d}" if row.eta_s is not None else ""
    knn = f"{row.knn:.3f}" if row.knn is not None else ""
    events = ", ".join(f"{n} {one_line(kind)}{'s' * (n > 1)}" for kind, n in row.events.items())
    return step, rate, left, knn, events


def watch(read: Callable[[], Sequence[Row]]) -> None:
    """Show the rows again every few seconds, until no run is under way."""
    rows = read()
    if not sys.stdout.isatty():
        print("\n".join(status_line(row) for row in rows), flush=True)
    with live_status(lambda: rows) as tick:
        while any(row.state in UNDER_WAY or row.job_state for row in rows):
            time.sleep(WATCH_EVERY_S)
            rows = read()
            tick()


class _Lines:
    """Print a run when its state changes, and every running one from time to time."""

    def __init__(self, read: Callable[[], Sequence[Row]]) -> None:
        self.read = read
        self.states = {row.run: row.state for row in read()}
        self.printed = time.monotonic()

    def update(self) -> None:
        due = time.monotonic() - self.printed > LINES_EVERY_S
        for row in self.read():
            changed = self.states.get(row.run) != row.state
            if changed or (due and row.state in ("running", "unstable")):
                print(status_line(row), flush=True)
            self.states[row.run] = row.state
        if due:
            self.printed = time.monotonic()


def _at_most_every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `act`, unless it did so less than `seconds` ago."""
    last = 0.0

    def act_if_due() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return act_if_due
