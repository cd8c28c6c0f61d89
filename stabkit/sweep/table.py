"""Status rows as a terminal table: a column for each varied setting, states colored by verdict."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stabkit.analyze.verdict import counted_verdicts
from stabkit.printing import counted, one_line
from stabkit.rundir import missing_rows
from stabkit.sweep.looks import Look, sparkline
from stabkit.sweep.status import ENDED, OPEN, Row

STYLE = {
    "running": "cyan",
    "unstable": "yellow",
    "preempted": "yellow",
    "failed": "red",
    "lost": "red",
}
# A run that is done is green only if it was judged and found stable.
VERDICT_STYLE = {"stable": "green", "diverged": "red", "collapsed": "red", "unknown": ""}
FEW_STEPS = 20  # of a run, that count with those it has made
SPARED = ("images/s", "left", "curve")  # columns for which a narrow terminal has no room
LONGEST_SLUG = 120  # characters, where the name of a folder is cut


def status_table(
    rows: Sequence[Row],
    looks: Mapping[str, Look] | None = None,
    left_out: Sequence[Row] = (),
    so_far: float | None = None,
    width: int = 10_000,
) -> Group:
    """Return the rows as tables, one a folder, and their totals.

    `looks`: by the path of a run. `left_out`: rows for which a screen has no room, to be counted.
    `so_far`: seconds since a live table was begun, which show that it lives. `width`: characters of
    a line; where they do not suffice, a column of `SPARED` is left out.
    """
    looks = looks or {}
    parts: list[RenderableType] = []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.run.rpartition("/")[0], []).append(row)
    for folder, members in groups.items():
        if len(groups) > 1:
            parts.append(Text(one_line(folder or "."), "bold"))
        parts.append(_table(members, looks, width))
    if left_out:
        counts = Counter(row.state for row in left_out)
        words = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        parts.append(Text(f"and {words}", "dim"))
    every = [*rows, *left_out]
    last = [totals(every, looks)] if len(every) > 1 else []
    last += [f"{duration(so_far)} so far"] if so_far is not None else []
    if last:
        parts.append(Text(" · ".join(last), "bold"))
    return Group(*parts)


def totals(rows: Sequence[Row], looks: Mapping[str, Look] | None = None, ended: int = 0) -> str:
    """Return how many runs are done, what was found in them, and the time that is left.

    `ended`: runs that have just ended, whose places others will take.
    """
    counts = Counter(row.state for row in rows)
    done = [row for row in rows if row.state == "done"]
    known = [look.verdict for row in done if (look := (looks or {}).get(row.path))]
    verdicts = [verdict for verdict in known if verdict is not None]
    judged = f" ({counted_verdicts(verdicts)})" if done and len(verdicts) == len(done) else ""
    words = [f"{len(done):,} of {len(rows):,} done{judged}"]
    words += [f"{n:,} {state}" for state, n in counts.items() if state != "done"]
    left = time_left(rows, ended)
    return ", ".join(words) + (f" · {duration(left)} left" if left is not None else "")


def time_left(rows: Sequence[Row], ended: int = 0) -> float | None:
    """Return the seconds until all runs are done, if as many run at once as now, at one rate.

    A run that has made no step yet counts as one that runs, and so do those that have just `ended`,
    as long as others wait. None if no run has made a step.
    """
    under_way = [row for row in rows if row.eta_s and row.steps > row.step]
    rates = _rates(under_way, rows)
    if not any(rates):
        return None
    usual = max(row.steps for row in under_way)
    todo = [row for row in rows if row.state in OPEN]
    running = sum(row.state in ("running", "unstable") for row in todo)
    at_once = min(len(todo), max(len(rates), running + ended))
    rate = at_once * sum(rates) / len(rates)
    steps = sum((row.steps or usual) - row.step for row in todo)
    own = [(row.steps - row.step) / r for row, r in zip(under_way, rates, strict=True) if r]
    return max(steps / rate, *own, 0.0)


def _rates(under_way: Sequence[Row], rows: Sequence[Row]) -> list[float]:
    """Return the steps a second of each run: those it made, and a few at the usual images a second.

    The first steps of a run are slow: with them alone, the time left would jump at each new run.
    """
    made = [(row.step - row.first, row.images_per_s) for row in rows if row.images_per_s]
    made = [(steps, speed) for steps, speed in made if steps > 0]
    usual = sum(steps for steps, _ in made) / sum(n / speed for n, speed in made) if made else 0
    rates = []
    for row in under_way:
        rate = (row.steps - row.step) / (row.eta_s or math.inf)
        if row.images_per_s and rate and usual:
            some = FEW_STEPS * (row.images_per_s / rate) / usual  # seconds
            steps = row.step - row.first
            rate = (steps + FEW_STEPS) / (steps / rate + some)
        rates.append(rate)
    return rates


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Return step, images/s, time left, kNN in percent and events as text."""
    step = f"{row.step}/{row.steps}" if row.steps else str(row.step or "")
    rate = f"{row.images_per_s:.0f}" if row.images_per_s and row.eta_s is not None else ""
    left = duration(row.eta_s) if row.eta_s is not None else ""
    knn = f"{100 * row.knn:.1f}" if row.knn is not None else ""
    events = ", ".join(counted_events(n, kind) for kind, n in row.events.items())
    return step, rate, left, knn, events


def counted_events(number: int, kind: str) -> str:
    """Return how many events of a kind there are: `1 dip`, `2 collapses`."""
    if kind in ("nonfinite", "stale_moments"):  # no nouns of which there are several
        return f"{number:,} {kind}"
    return counted(number, one_line(kind))


def remarks(row: Row) -> list[str]:
    """Return the reason of a state, missing rows, and the log of a run that failed or is lost."""
    log = row.log if row.state in ("failed", "lost") else None
    why = [row.reason, missing_rows(row.missing), f"log: {log}" if log else None]
    return [one_line(" ".join(text.split("\n"))) for text in why if text]


def state_words(row: Row, look: Look) -> Text:
    """Return the state, and the verdict on a run that is done, in the color of the verdict."""
    if row.state not in ENDED:
        return Text(row.state, STYLE.get(row.state, ""))
    if look.verdict is None:
        return Text(row.state, "yellow" if row.events else "")
    return Text(f"{row.state} · {look.verdict}", VERDICT_STYLE.get(look.verdict, "yellow"))


def _table(rows: Sequence[Row], looks: Mapping[str, Look], width: int) -> Table:
    """Return the rows of one folder as a table. A column that would be empty is left out."""
    names = _names(rows)
    seen = [looks.get(row.path, Look()) for row in rows]
    values = [value for look in seen for value in look.curve if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    curves = [sparkline(look, row, low, high) for look, row in zip(seen, rows, strict=True)]
    told = list(zip(*map(cells, rows), strict=True))
    columns = {
        "state": [state_words(row, look) for row, look in zip(rows, seen, strict=True)],
        **dict(zip(("step", "images/s", "left", "kNN, %"), map(_texts, told[:4]), strict=True)),
        "curve": _texts(curves),
        "events": _texts(told[4]),
    }
    columns = {k: c for k, c in columns.items() if any(c) or k in ("state", "step")}
    for name in SPARED:
        if _width({**names, **columns}) > width:
            columns.pop(name, None)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, column in names.items():
        right = all(re.fullmatch(r"[-+.0-9e]*", cell) for cell in column)
        table.add_column(
            _header(name), justify="right" if right else "left", overflow="fold",
            no_wrap=name != "run",
        )  # fmt: skip
    for name in columns:
        words = name in ("state", "curve", "events")
        title = "last\nkNN, %" if name == "kNN, %" else name
        table.add_column(title, justify="left" if words else "right", no_wrap=True)
    for i, row in enumerate(rows):
        # As Text, since brackets in a name or a reason are not markup.
        first = [Text(one_line(column[i])) for column in names.values()]
        table.add_row(*first, *(column[i] for column in columns.values()))
        for text in remarks(row):
            table.add_row(Text(f"  {text}", "dim"))
    return table


def _texts(cells: Sequence[str]) -> list[Text]:
    return [Text(cell) for cell in cells]


def _header(name: str) -> str:
    """Return the name of a column; that of a setting in one line a word."""
    return name if name == "run" else name.replace("_", "\n")


def _width(columns: Mapping[str, Sequence[str | Text]]) -> int:
    """Return the characters that columns take side by side, two between them."""
    longest = (
        max(len(part) for part in (*_header(name).split("\n"), *column))
        for name, column in columns.items()
    )
    return sum(longest) + 2 * (len(columns) - 1)


def _names(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the columns that name the runs: each setting that varies and the id, or the name."""
    names = [row.run.rpartition("/")[2] for row in rows]
    parsed = [settings_in(name) for name in names]
    if all(parsed):
        found = [dict(settings) for settings in parsed if settings]
        keys = list(dict.fromkeys(key for settings in found for key in settings))
        columns = {key: [settings.get(key, "") for settings in found] for key in keys}
        varied = {key: column for key, column in columns.items() if len(set(column)) > 1}
        if len(varied) > 1:  # more than the id
            return varied
    return {"run": names}


def settings_in(name: str) -> dict[str, str] | None:
    """Return the settings and the id in the name of a sweep's run; None for any other name."""
    slug, _, run_id = name.rpartition("-")
    if not re.fullmatch("[0-9a-f]{8}", run_id) or len(slug) >= LONGEST_SLUG:
        return None
    settings = dict(_pairs(slug))
    return {**settings, "id": run_id} if settings and "" not in settings else None


def _pairs(slug: str) -> Iterator[tuple[str, str]]:
    """Yield key and value; a comma inside a value begins no new pair."""
    for part in re.split(r",(?=[A-Za-z0-9_]+=)", slug):
        key, sep, value = part.partition("=")
        yield (key, value) if sep else ("", part)
