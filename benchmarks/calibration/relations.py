"""The tables of layers' order and of association, each made in one process."""

from functools import partial

from benchmarks.calibration import association, order
from benchmarks.calibration.scores import TESTING, Each, made


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
    """Return the table of `event_association`; `runs` data sets for each case."""
    title = f"Association: p of at most .05 in {runs} data sets"
    return made(each, [(title, partial(association.association_table, runs, TESTING))])
