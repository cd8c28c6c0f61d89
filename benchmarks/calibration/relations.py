"""The tables of layers' order, of association, and of counts; each is made in one process."""

from collections.abc import Callable
from functools import partial

from benchmarks.calibration import association, counts, order
from benchmarks.calibration.scores import TESTING, Each

Made = tuple[str, Callable[[], str]]  # heading, what makes the table


def order_tables(each: Each, runs: int) -> str:
    """Return the tables of onset order and of joining; `runs` / 8 runs for each case."""
    few, seed = max(2, runs // 8), TESTING
    return made(each, [
        ("Order: what is planted and what is told", partial(order.order_table, few, seed)),
        ("Order: told where there is none",
         partial(order.false_order_table, max(2, runs // 10), seed)),
        ("Order: lags", partial(order.lag_table, max(2, runs // 20), seed)),
        ("Bursts: events that are joined", partial(order.joining_table, seed)),
        ("Order: of spikes that chance joins", partial(order.joined_order_table, runs, seed)),
    ])  # fmt: skip


def association_tables(each: Each, runs: int) -> str:
    """Return the table of `event_association`; `runs` / 2 data sets for each case."""
    sets = max(2, runs // 2)
    title = f"Association: p of at most .05 in {sets} data sets"
    return made(each, [(title, partial(association.association_table, sets, TESTING))])


def count_tables(each: Each, runs: int) -> str:
    """Return the tables of comparisons of runs; `runs` data sets a cell."""
    return made(each, [
        ("Levels: coverage of intervals, nominal 95 %", partial(counts.coverage_table, runs)),
        ("Levels: arms of one mean that are said to differ at .05",
         partial(counts.level_error_table, runs)),
        ("Dips: arms of one law that are said to differ at .05",
         partial(counts.rate_error_table, runs)),
        ("Dips: power at .05", partial(counts.rate_power_table, runs)),
        ("Stable sweeps: four rates", partial(counts.frontier_table, runs)),
    ])  # fmt: skip


def made(each: Each, tables: list[Made]) -> str:
    """Return the tables, made at the same time, each under its heading."""
    texts = each(partial(nth, [make for _, make in tables]), len(tables), 0)
    titles = [title for title, _ in tables]
    return "\n".join(f"### {title}\n\n{text}\n" for title, text in zip(titles, texts, strict=True))


def nth(makers: list[Callable[[], str]], i: int) -> str:
    return makers[i]()
